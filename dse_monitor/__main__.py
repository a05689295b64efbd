"""`python -m dse_monitor` is the same as `dse-monitor`."""

from dse_monitor.cli import main

if __name__ == "__main__":
    main()
