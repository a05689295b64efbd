"""`dse-monitor watch`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dse_monitor.cli.checkpoints import check_arch, check_layout
from dse_monitor.cli.printing import FAILED
from dse_monitor.errors import RunError
from dse_monitor.watch.options import WatchOptions
from dse_monitor.watch.process import become

if TYPE_CHECKING:
    from pathlib import Path

    from dse_monitor.alerts.sinks.delivery import Sink


def watch(options: WatchOptions) -> int:
    """Become the watcher, or only try where its alerts would go."""
    check_layout(options.config.layout)
    check_arch(options.config)
    sinks = options.sinks  # one that cannot be made is reported here, before anything starts
    if options.test_alert:
        return _try_sinks(options.runs[0], sinks)
    become(options)


def _try_sinks(run: Path, sinks: tuple[Sink, ...]) -> int:
    from dse_monitor.alerts.book import test_alert
    from dse_monitor.alerts.sinks.trial import try_sinks

    if not sinks:
        raise RunError("--test-alert has nothing to try; name sinks with --alert, such as webhook:env:NAME")
    outcome = try_sinks(test_alert(run.resolve().name, now=time.time()), list(sinks))
    for name, reason in outcome.items():
        print(f"✗ {name}: {reason}" if reason else f"✓ {name}: delivered")
    return FAILED if any(outcome.values()) else 0
