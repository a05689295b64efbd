"""The agent that follows a run. The supervisor imports no torch; the worker does."""
