"""The DSE tab of TensorBoard."""

if __name__ != "dse_monitor.tb_plugin":  # in a checkout's root: no second copy of a module
    raise ImportError(f"this package is dse_monitor.tb_plugin; it cannot be imported as {__name__}")
