"""A watched run for notebooks and scripts: evaluations as a table, best, candidates, alerts, feature maps.

    >>> import dse_monitor
    >>> run = dse_monitor.open_run("runs/exp1")  # doctest: +SKIP
    >>> run.best.file, run.best.dse  # doctest: +SKIP
    >>> run.to_pandas().plot(x="epoch", y="dse", yerr="dse_se")  # doctest: +SKIP

Everything is read from the run's ledger, without a lock, so a watcher may be at work meanwhile. Nothing is
written and torch is not loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse_monitor.alerts.selection import best_table
from dse_monitor.errors import RunError
from dse_monitor.publish.best import readable_files
from dse_monitor.runs import export, ledger
from dse_monitor.runs.record import OUTPUT_FOLDER, Alert, Evaluation
from dse_monitor.runs.series import CANDIDATES, Series

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A checkpoint that the released selection rule proposes.

    Attributes:
        rank: 1 for the best.
        at: its position on the run's axis (see ``Run.axis``).
        dse: its DSE at the run's lambda.
        dse_se: standard error of ``dse`` over images; NaN where unknown.
        behind: DSE of the best less ``dse``.
        better: probability that it is truly better than the best, from the standard errors; NaN for the best.
        file: where the checkpoint can be read now; None if it is gone or was overwritten.
        evaluation: the full record.
    """

    rank: int
    at: float
    dse: float
    dse_se: float
    behind: float
    better: float
    file: Path | None
    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What was recorded about a run when it was opened; open it again for what came since.

    Attributes:
        name: the run's name.
        output: its output folder, usually ``<RUN>/dse``.
        evaluations: every record in the order of recording, failed and invalid ones included.
        alerts: every change of an alert's state, oldest first.
        series: the scored evaluations of the newest settings in training order, with DSE and its errors.
        warnings: lines of the ledger that could not be read.
    """

    name: str
    output: Path
    evaluations: tuple[Evaluation, ...]
    alerts: tuple[Alert, ...]
    series: Series
    warnings: tuple[str, ...] = ()

    @property
    def axis(self) -> str:
        """What orders the checkpoints: ``epoch``, ``step`` or ``order``; `runs/order.py` says when which."""
        return self.series.axis

    @property
    def notes(self) -> tuple[str, ...]:
        """What was scored and does not count, and what the order rests on where it is not plain."""
        return tuple(note.text for note in self.series.notes)

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The best checkpoint and the next candidates, best first; empty before the first score."""
        table = best_table(self.series, CANDIDATES)
        chosen = [self.series.evaluations[index] for index in self.series.candidates[:CANDIDATES]]
        files = readable_files(self.output, chosen)
        return tuple(
            Candidate(
                rank=choice.rank,
                at=choice.at,
                dse=choice.dse,
                dse_se=choice.dse_se,
                behind=choice.behind,
                better=choice.better,
                file=file,
                evaluation=evaluation,
            )
            for choice, file, evaluation in zip(table, files, chosen, strict=True)
        )

    @property
    def best(self) -> Candidate | None:
        """The checkpoint to take; None before the first score."""
        return next(iter(self.candidates), None)

    @property
    def maps(self) -> dict[int, Path]:
        """Feature-map images that are still there, by the evaluations' sequence numbers (``seq``)."""
        painted = {e.seq: self.output / e.map_file for e in self.evaluations if e.map_file}
        return {seq: path for seq, path in painted.items() if path.is_file()}

    def table(self) -> list[dict[str, Any]]:
        """One flat row per evaluation, with the columns of ``dse-monitor export --csv``.

        None where there is no value. ``dse`` is at the run's lambda for the newest settings, at 1 for others.
        """
        return export.rows(self.output, self.evaluations)

    def to_pandas(self) -> pandas.DataFrame:
        """:meth:`table` as a data frame.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas() needs pandas: pip install pandas, or use table()") from error
        return pandas.DataFrame(self.table())

    def __repr__(self) -> str:
        best = self.best
        if best is None:
            return f"<Run {self.name}: {len(self.evaluations)} evaluations, nothing scored yet>"
        error = f" ± {best.dse_se:.3f}" if math.isfinite(best.dse_se) else ""
        return (
            f"<Run {self.name}: {len(self.series)} checkpoints scored, "
            f"best at {self.series.place(self.series.candidates[0])} with DSE {best.dse:+.3f}{error} "
            f"at lambda {self.series.lam:.3g}>"
        )


def open_run(path: str | Path) -> Run:
    """Read a watched run.

    Args:
        path: the run's folder, or its output folder.

    Raises:
        RunError: nothing was watched there, or a newer version of this program wrote it.
    """
    output = output_folder(Path(path))
    view = ledger.read(output)
    return Run(
        name=output.absolute().parent.name,
        output=output,
        evaluations=view.evaluations,
        alerts=view.alerts,
        series=Series.from_evaluations(view.evaluations),
        warnings=view.warnings,
    )


def output_folder(run: Path) -> Path:
    """Where a run's ledger lies: the folder itself, or ``dse`` below it.

    Raises:
        RunError: neither holds a ledger.
    """
    if folder := ledger.find(run):
        return folder
    raise RunError(
        f"{run} was not watched: no {ledger.NAME} in it or in {run / OUTPUT_FOLDER}; start dse-monitor watch"
    )
