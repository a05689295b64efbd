"""From a file's tensors to the network they belong to, and how far its training was."""
