"""`python -m dse_monitor` is `dse-monitor`: what torchrun starts, which wants a module and not a script."""

from dse_monitor.cli import main

if __name__ == "__main__":
    main()
