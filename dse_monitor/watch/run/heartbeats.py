"""The small file in which a watcher writes what it does with a run; see runs/heartbeat.py."""

from __future__ import annotations

import contextlib
from typing import Any

import dse_monitor
from dse_monitor.runs import heartbeat
from dse_monitor.watch.files.waiting import Filter, Queue
from dse_monitor.watch.run.context import RunContext
from dse_monitor.watch.run.poller import Poller
from dse_monitor.watch.run.records import Records


class Heartbeats:
    """Writes the heartbeats of one run.

    Args:
        context: the run.
        option_filter: what the options pass over.
        since: when the watch began, seconds since 1970.
    """

    def __init__(self, context: RunContext, option_filter: Filter, since: float):
        self._context, self._filter, self._since = context, option_filter, since

    def write(self, state: str, records: Records, queue: Queue, poller: Poller, **facts: Any) -> None:
        """Replace the file; a disk that refuses is noticed elsewhere.

        Args:
            state: see heartbeat.Heartbeat, as well as for ``facts``.
            records: what is on record.
            queue: checkpoints that wait.
            poller: what was seen of the folder.
            facts: other fields of the heartbeat.
        """
        history = records.history
        beat = heartbeat.new(
            dse_monitor.__version__,
            self._context.clock.time(),
            state=state,
            since=self._since,
            scored=history.count("scored"),
            failed=history.count("failed") + history.count("invalid"),
            queue=len(queue),
            settling=len(poller.settler.waiting),
            skipped=len(self._filter.refused),
            present=poller.candidates,
            last_error=self._context.report.last_problem,
            **facts,
        )
        with contextlib.suppress(OSError):
            beat.write(self._context.out)
