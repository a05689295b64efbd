"""What is true of a run: where each rule stands, given the evaluations, in whatever order they came."""

from __future__ import annotations

from dataclasses import dataclass

from dse_monitor.alerts.evidence import Evidence
from dse_monitor.alerts.parameters import Rules

KINDS = {  # of each rule's alerts
    "degradation": "degradation",
    "non-finite": "non-finite",
    "failures": "health",
    "stale": "health",
    "plateau": "plateau",
}


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where one rule stands.

    Attributes:
        status: ``inactive``, ``pending``, ``firing`` or ``resolved``.
        severity: ``info``, ``warning`` or ``critical``.
        since: position from which it counts, on the run's axis; None if it does not apply.
        streak: checkpoints in a row that speak for it.
        unknown: the newest checkpoint could not be measured, so this is what was true before it.
    """

    status: str = "inactive"
    severity: str = "warning"
    since: float | None = None
    streak: int = 0
    unknown: bool = False


def statuses(evidence: Evidence, rules: Rules, *, stale: bool) -> dict[str, Status]:
    """Where each rule stands, by name.

    Args:
        evidence: what is known of the run.
        rules: when they fire.
        stale: whether no checkpoint came for long, when that was last looked at.
    """
    phase, x = evidence.trace.phase, evidence.trace.x
    unknown = evidence.newest_failed
    invalid, failed = evidence.invalid_streak(), evidence.failing
    plateau = phase.plateau and phase.status not in ("pending", "firing")
    return {
        "degradation": Status(
            status=phase.status,
            severity=phase.severity,
            since=None if phase.since is None else float(x[phase.since]),
            streak=phase.streak,
            unknown=unknown,
        ),
        "non-finite": Status(
            status="firing" if invalid else "inactive",
            severity="critical",
            streak=invalid,
            unknown=unknown,
        ),
        "failures": Status(
            status="firing" if failed >= rules.failures else "pending" if failed else "inactive",
            streak=failed,
        ),
        "stale": Status(status="firing" if stale else "inactive"),
        "plateau": Status(status="firing" if plateau else "inactive", severity="info", unknown=unknown),
    }
