"""One watched run: from a file that appears to what is published about it."""
