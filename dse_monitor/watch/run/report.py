"""What a watcher reports about one run: from records to the lines of the console."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dse_monitor.evaluation.config import EvaluationConfig
from dse_monitor.runs.history import History, index_of
from dse_monitor.runs.record import Alert, Evaluation, Settings
from dse_monitor.runs.series import FEWEST_FOR_LAMBDA, Series
from dse_monitor.watch.console import Console, Header, Notice, Problem, Row

# What is taken for every network alike where nothing states it; the header need not repeat it.
_ALIKE = ("interpolation", "crop", "resize", "image size", "attention scale")
NAMED = ("replaced", "merged")  # kinds of notes that name a checkpoint
REMEMBERED = 1000  # lines that were printed once and are not printed again; chosen by us


class Report:
    """The lines on the console about one run.

    Args:
        console: where they go.
        run: name of the run.

    Attributes:
        last_problem: the newest problem in words; empty if there was none.
    """

    def __init__(self, console: Console, run: str):
        self._console, self._run = console, run
        self._said: dict[str, None] = {}
        self._settings: list[Settings] = []  # of numbers that belong to what is asked for now, newest last
        self._best = 0  # sequence number; 0 before anything was shown, -1 while nothing compares
        self.last_problem = ""

    def header(
        self,
        folder: Path,
        out: Path,
        history: History,
        config: EvaluationConfig,
        *,
        other_settings: bool,
        other_pictures: int = 0,
        remeasure: bool = False,
    ) -> None:
        """The block at the top, as far as it is known before a checkpoint is measured.

        Args:
            folder: of the run.
            out: its output folder.
            history: the evaluations on record.
            config: what is measured.
            other_settings: whether something else was measured the last time.
            other_pictures: how many checkpoints were scored on earlier pictures under the same names alone.
            remeasure: whether those are measured again.
        """
        scored = history.count("scored")
        refused = f", {len(history) - scored} could not be" if len(history) > scored else ""
        known = f"{scored} already scored{refused}" if len(history) else "nothing scored yet"
        self._header("run", str(folder), known)
        self._header("images", str(config.images), f"{config.num_images:,}, a seeded sample")
        if other_settings:
            self._header("settings", "others than before: what is there is measured again, on its own line")
        else:
            self._settings = history.settings()
        if other_pictures:
            text = f"{other_pictures:,} scored on other pictures under the same names, on a line of their own"
            aside = "measured again where files are left" if remeasure else "--remeasure measures them again"
            self._header("pictures", text, aside)
        if len(history):
            self.encoder(history[-1])
        self._header("output", str(out), f"tensorboard --logdir {folder.parent}")

    def encoder(self, evaluation: Evaluation) -> None:
        """Which network is measured, when it is the first or another one."""
        source = evaluation.source
        if source.arch and self._first(f"encoder {source.arch} {source.encoder}"):
            of = f"{source.encoder} of a {source.layout} checkpoint" if source.layout else source.encoder
            self._header("encoder", source.arch, of)
        facts = evaluation.settings.facts if evaluation.settings else ()
        assumed = ", ".join(fact.name for fact in facts if fact.assumed and fact.name not in _ALIKE)
        if assumed and self._first(f"assumed {assumed}"):
            self._header("assumed", assumed, "see dse-monitor inspect")

    def failed(self, evaluation: Evaluation) -> None:
        """A checkpoint without a number. The same reason in one layout is one problem."""
        self.problem(
            evaluation.source.path, evaluation.reason, f"{evaluation.error} {evaluation.source.layout}"
        )

    def scored(
        self, evaluation: Evaluation, series: Series, rule: str, alert: Alert | None, kept: str = ""
    ) -> None:
        """One checkpoint's line.

        Args:
            evaluation: of the checkpoint.
            series: the run's, with it.
            rule: the state of the degradation rule in a few words.
            alert: what the rule has to say now; None if it says nothing.
            kept: the kept file of the best checkpoint; empty if there is none.
        """
        self.encoder(evaluation)
        self._compare_settings(evaluation)
        index = index_of(series.evaluations, evaluation.seq)
        if index is not None:
            self._row(index, series, rule, alert, kept)
        self._best_moved(series, evaluation)
        for note in series.notes:
            # What names a checkpoint is said for each; what counts them, once.
            self.once(f"note {note.text if note.kind in NAMED else note.kind}", note.text)

    def _best_moved(self, series: Series, evaluation: Evaluation) -> None:
        """Say so if another checkpoint than the one just measured became the best, as lambda moved."""
        if series.best is None or series.counted < FEWEST_FOR_LAMBDA:
            self._best = -1
            return
        best = series.evaluations[series.best]
        if self._best and best.seq not in (self._best, evaluation.seq):
            text = f"best is now {series.place(series.best)} ({best.source.path}), at lambda {series.lam:.3g}"
            self._console.notice(Notice(run=self._run, text=text, mark="best"))
        self._best = best.seq

    def _row(self, index: int, series: Series, rule: str, alert: Alert | None, kept: str) -> None:
        evaluation = series.evaluations[index]
        others = series.dse[(np.arange(len(series)) != index) & ~series.untrained]
        settled = series.counted >= FEWEST_FOR_LAMBDA
        is_best, untrained = settled and series.best == index, bool(series.untrained[index])
        story = ""
        if alert is not None:
            story = f"{alert.message} Kept as {kept}." if kept else alert.message
        self._console.row(
            Row(
                run=self._run,
                path=evaluation.source.path,
                axis=series.axis,
                x=float(series.x[index]),
                dse=float(series.dse[index]),
                dse_se=float(series.dse_se[index]),
                delta=float(series.dse[index] - others.max()) if len(others) and not untrained else None,
                place=series.place(index),
                settled=settled,
                separability=float(series.separability[index]),
                m_dim=float(series.m_dim[index]),
                lam=series.lam,
                seconds=evaluation.seconds.get("total", 0.0),
                best=is_best,
                mark="" if is_best else "untrained" if untrained else rule,
                story=story,
            )
        )

    def _compare_settings(self, evaluation: Evaluation) -> None:
        """Say when a number cannot be joined with those before it although nothing else was asked for.

        The file says otherwise how it is to be read, or a newer version of this package reads it otherwise.
        """
        now = evaluation.settings
        if now is None or now in self._settings:
            return
        if self._settings and dataclasses.replace(self._settings[-1], images=now.images) == now:
            self.notice(
                f"the held-out images are other pictures than before under the same names: from "
                f"{evaluation.source.path} on, numbers are on a line of their own. Earlier numbers are kept; "
                "--remeasure measures those checkpoints again on these pictures"
            )
        elif self._settings:
            self.notice(
                f"{evaluation.source.path} was measured otherwise than what is on record "
                f"({_differences(self._settings[-1], now)}), so its number starts a line of its own. Earlier "
                "numbers are kept; to measure those checkpoints again in the same way, watch once with a new "
                "--out"
            )
        self._settings.append(now)

    def alerts(self, alerts: Sequence[Alert]) -> None:
        """Alerts that do not stand on a checkpoint's line."""
        for alert in alerts:
            self._console.notice(Notice(run=self._run, text=alert.message, mark="warning"))

    def problem(self, path: str, reason: str, kind: str) -> None:
        """A problem; those of one kind are counted."""
        self.last_problem = reason
        self._console.problem(Problem(run=self._run, path=path, reason=reason, kind=kind))

    def notice(self, text: str) -> None:
        """Something worth knowing."""
        self._console.notice(Notice(run=self._run, text=text))

    def once(self, key: str, text: str) -> None:
        """Something worth knowing that stays true; printed once until :meth:`over`."""
        if self._first(key):
            self.notice(text)

    def over(self, key: str) -> None:
        """It is not true any more; it may be printed again."""
        self._said.pop(key, None)

    def _first(self, key: str) -> bool:
        if key in self._said:
            return False
        self._said[key] = None
        if len(self._said) > REMEMBERED:  # weeks of small problems must not fill memory
            del self._said[next(iter(self._said))]
        return True

    def _header(self, label: str, text: str, aside: str = "") -> None:
        self._console.header(Header(label=label, text=text, aside=aside, run=self._run))


def _differences(before: Settings, now: Settings) -> str:
    """The settings that differ, old and new."""
    pairs = ((f.name, getattr(before, f.name), getattr(now, f.name)) for f in dataclasses.fields(Settings))
    return "; ".join(f"{name} {_words(new)}, was {_words(old)}" for name, old, new in pairs if old != new)


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value) or "the usual one"
