"""Code that the user names with ``--network``: where it is, what it is, and running it. Never a checkpoint's.

`locate` looks at it without running it, so that a mistake shows before anything is measured; `running` runs
it. No torch is imported here.
"""
