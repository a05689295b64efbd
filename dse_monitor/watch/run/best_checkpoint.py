"""best.json of a run, and the files that it names."""

from __future__ import annotations

import contextlib

from dse_monitor.publish import best
from dse_monitor.runs import identity
from dse_monitor.runs.record import Evaluation
from dse_monitor.runs.series import Series
from dse_monitor.watch.run.context import RunContext
from dse_monitor.watch.run.poller import Poller
from dse_monitor.watch.run.records import Records


class BestCheckpoint:
    """Knows where the best checkpoints of one run lie, and keeps as many of them as the options ask for.

    Args:
        context: the run.
        records: what is on record.
        poller: knows which candidates the last scan saw.
    """

    def __init__(self, context: RunContext, records: Records, poller: Poller):
        self._context, self._records, self._poller = context, records, poller
        self._keeper = best.Keeper(
            context.folder,
            context.out,
            context.options.keep_best,
            context.dependencies.is_rolling,
            cancelled=context.cancelled,
        )

    def update(self, series: Series) -> None:
        """Keep the best of a series from rotation and publish it.

        Raises:
            OSError: the output folder cannot be written.
        """
        self._keeper.update(series, self._locate)
        if self._keeper.problem:
            self._context.report.once(self._keeper.problem, self._keeper.problem)
        self.publish(series)

    def publish(self, series: Series) -> None:
        """Write best.json.

        Raises:
            OSError: the output folder cannot be written.
        """
        described = best.describe(self._context.folder, series, self._locate, self._keeper.path)
        best.publish(self._context.out, self._context.folder, described)

    def kept(self, series: Series) -> str:
        """The kept file of the best of a series; empty if there is none."""
        kept = self._keeper.path(series.evaluations[series.best].seq) if series.best is not None else None
        return str(kept) if kept is not None else ""

    def _locate(self, evaluation: Evaluation) -> str | None:
        """Path of a file that still holds the version evaluated; a name that stays is preferred."""
        paths = (evaluation.source.path, *evaluation.source.aliases)
        for path in sorted(paths, key=self._context.dependencies.is_rolling):
            with contextlib.suppress(OSError):
                stamp = identity.stamp(self._context.folder / path)
                if self._records.versions.find(path, stamp) == evaluation.seq:
                    return path
        # The scans say when a file of a name that is not there comes back: see `Results.known`.
        seen = not self._poller.scans or any(map(self._poller.has, paths))
        if not seen and self._keeper.path(evaluation.seq) is None:
            self._records.history.set_left(evaluation.seq, False)
        return None
