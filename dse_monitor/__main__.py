"""`python -m dse_monitor` is the same as `dse-monitor`, and `python -m dse_monitor train` as `dse-train`.

The second is what torchrun starts, which wants a module and not a script.
"""

import sys


def main() -> None:
    """Run the command that the arguments name."""
    if sys.argv[1:2] == ["train"]:
        from dse_monitor.trainers.command_line import main as train

        train(sys.argv[2:])
        return
    from dse_monitor.cli import main as monitor

    monitor()


if __name__ == "__main__":
    main()
