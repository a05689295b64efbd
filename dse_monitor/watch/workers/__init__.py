"""The processes that evaluate, and how they behave beside a training."""
