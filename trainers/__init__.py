"""Self-supervised trainers, sixteen methods on one engine, with inline DSE regularisation."""

if __name__ != "dse_monitor.trainers":  # in a checkout's root: no second copy of a module
    raise ImportError(f"this package is dse_monitor.trainers; it cannot be imported as {__name__}")
