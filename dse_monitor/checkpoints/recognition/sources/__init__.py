"""Who states something about a network beside its tensors: one file per way of writing it down.

Each function yields Statements in the order of their weight, all of them of values that were checked: what a
file says may be of any type and size, and what has no meaning is left out.
"""
