"""Bytes and pickles, inert: nothing of a file is ever executed."""
