"""A run judged checkpoint by checkpoint, always with what was known then.

The outcome depends on which evaluations there are, not on the order they arrived in: they are put into
training order first. Only what changed since the last look is judged again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dse_monitor.alerts.rules import Judgement, Rules, judge
from dse_monitor.record import Evaluation
from dse_monitor.series import adaptive_lambda, in_training_order, position


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Where a run stands after a checkpoint.

    Attributes:
        status: ``inactive``, ``pending``, ``firing`` or ``resolved``.
        streak: checkpoints in a row beyond the margin.
        calm: checkpoints in a row that had recovered, while firing.
        since: index of the checkpoint from which the drop is counted; None without one.
        first_drop: drop of the level when the alarm was raised.
        severity: ``warning``, or ``critical`` once the drop has grown by ``Rules.worsened``.
        plateau: whether the run stands on a plateau.
        wavering: checkpoints in a row that say otherwise than ``plateau``.
    """

    status: str = "inactive"
    streak: int = 0
    calm: int = 0
    since: int | None = None
    first_drop: float = 0.0
    severity: str = "warning"
    plateau: bool = False
    wavering: int = 0


def step(phase: Phase, judgement: Judgement, index: int, rules: Rules) -> Phase:
    """The phase after one more checkpoint: the whole state machine."""
    wavering = 0 if judgement.plateau == phase.plateau else phase.wavering + 1
    turned = wavering >= rules.sustain
    phase = dataclasses.replace(phase, plateau=phase.plateau != turned, wavering=0 if turned else wavering)
    if phase.status == "firing":
        calm = phase.calm + 1 if judgement.recovered else 0
        if calm >= rules.sustain:
            return dataclasses.replace(phase, status="resolved", calm=0, streak=0)
        worse = judgement.level_drop >= rules.worsened * phase.first_drop
        return dataclasses.replace(phase, calm=calm, severity="critical" if worse else phase.severity)
    if not judgement.beyond:
        status = "inactive" if phase.status == "pending" else phase.status
        return dataclasses.replace(phase, status=status, streak=0)
    streak = phase.streak + 1
    firing = streak >= rules.sustain and judgement.significant
    return dataclasses.replace(
        phase,
        status="firing" if firing else "pending",
        streak=streak,
        calm=0,
        since=index if streak == 1 else phase.since,
        first_drop=judgement.level_drop,
        severity="warning",
    )


def lineage(evaluations: Iterable[Evaluation]) -> tuple[list[Evaluation], str]:
    """The line of checkpoints that led to the newest one, in training order, and its axis.

    When a run is resumed from an older checkpoint, files appear again under their old names with other
    weights. What was measured before that beyond this point belongs to an abandoned branch and is left out
    until it, too, is measured anew.
    """
    measured = list(evaluations)
    chosen, axis = in_training_order(measured)
    if axis == "order":
        return chosen, axis
    rewritten: dict[float, int] = {}
    winners = {(position(e, axis), e.source.path): e for e in chosen}
    for old in measured:
        if old.components is None or (old.source.epoch if axis == "epoch" else old.source.step) is None:
            continue
        new = winners.get((position(old, axis), old.source.path))
        if new is None or not old.source.content or not new.source.content:
            continue
        if new.source.content != old.source.content and new.settings == old.settings and new.seq > old.seq:
            rewritten[position(new, axis)] = new.seq
    return [
        e for e in chosen if not any(position(e, axis) > x and e.seq < seq for x, seq in rewritten.items())
    ], axis


class Trace:
    """The phases of one run after each of its checkpoints.

    Attributes:
        evaluations: the lineage.
        axis: its axis.
        x: its positions [n].
        phases: one per checkpoint.
    """

    def __init__(self, rules: Rules):
        self.rules = rules
        self.evaluations: list[Evaluation] = []
        self.axis = "epoch"
        self.x = np.zeros(0)
        self.phases: list[Phase] = []

    @property
    def phase(self) -> Phase:
        """Where the run stands now."""
        return self.phases[-1] if self.phases else Phase()

    def update(self, evaluations: Sequence[Evaluation]) -> None:
        """Judge what is new, given everything known of the run."""
        chosen, axis = lineage(evaluations)
        same = 0
        if axis == self.axis:
            while same < min(len(chosen), len(self.evaluations)) and chosen[same] is self.evaluations[same]:
                same += 1
        self.evaluations, self.axis = chosen, axis
        self.x = np.array([position(e, axis, k) for k, e in enumerate(chosen, 1)], np.float64)
        del self.phases[same:]
        parts = [e.components for e in chosen if e.components is not None]
        separability = np.array([c.separability for c in parts])
        m_dim = np.array([c.m_dim for c in parts])
        variance = np.array([c.separability_se for c in parts]) ** 2
        dim_variance = np.array([c.m_dim_se for c in parts]) ** 2
        covariance = np.array([c.separability_dim_cov for c in parts])
        start = 1 if len(parts) > 1 and self.x[0] == 0 else 0  # an untrained network is nobody's best
        for n in range(same + 1, len(chosen) + 1):
            s, d = separability[:n], m_dim[:n]
            lam = adaptive_lambda(s, d) if self.rules.lam is None else self.rules.lam
            squared = variance[:n] + lam**2 * dim_variance[:n] + 2 * lam * covariance[:n]
            line = slice(min(start, n - 1), n)
            judgement = judge(
                self.x[line], (s + lam * d)[line], np.sqrt(np.maximum(squared, 0))[line], self.rules
            )
            self.phases.append(step(self.phase, judgement, n - 1, self.rules))
