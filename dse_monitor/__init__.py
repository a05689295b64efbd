"""Watch self-supervised training from the outside: dense quality (DSE) of every checkpoint, without labels.

Importing this package is cheap; what needs torch is imported where it is used.
"""

__version__ = "0.1.0"
