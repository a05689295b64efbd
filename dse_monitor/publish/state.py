"""The state of a run in one small JSON object: what a list of runs shows, and whether data is complete.

Published as the last word of the event data (tag ``dse/state``); `tb_plugin/http_api.md` describes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dse_monitor.runs.history import History, series_of
from dse_monitor.runs.record import POINT_COLUMNS, SCHEMA, Alert, Evaluation, Settings, finite, to_json
from dse_monitor.runs.series import Series

STATUSES = ("scored", "failed", "invalid")
STATUS_RANK = {"firing": 2, "pending": 1}
KIND_RANK = {
    "non-finite": 2,
    "degradation": 1,
}  # what is wrong with the run comes before its watcher's health
SEVERITY_RANK = {"critical": 2, "warning": 1}


def run_state(
    evaluations: Sequence[Evaluation],
    alerts: Sequence[Alert],
    *,
    run: str,
    watcher: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Summarise a run.

    Args:
        evaluations: every evaluation recorded so far, in any order.
        alerts: every change of an alert's state recorded so far, in any order.
        run: the run's name.
        watcher: what the watcher does now, or None if none is running: ``alive`` (bool), ``seen`` (seconds
            since 1970), ``every`` (seconds until the next word at the latest), ``queue`` (checkpoints
            waiting), ``current`` (relative path under evaluation, or empty), ``message`` (one line).

    Returns:
        Plain JSON types: ``schema``, ``run``, ``columns``; counts ``n_written`` (evaluations of any status),
        ``n_scored``, ``n_failed``, ``n_invalid``, ``n_alerts``; ``last_seq``; of the current series ``axis``,
        ``lambda``, ``points``, ``best``, ``top3``, ``last`` and ``notes`` (sentences); ``settings`` (current
        fingerprint) and ``settings_by_fingerprint``; ``alert`` (see `alert_state`); ``watcher``.
    """
    line = series_of(evaluations)
    counts, used, last = _summary(evaluations)
    settings = {found.fingerprint: to_json(found) for found in used}
    size = len(line.evaluations)
    current = line.evaluations[-1].settings if size else None
    return {
        "schema": SCHEMA,
        "run": run,
        "columns": list(POINT_COLUMNS),
        "n_written": len(evaluations),
        **{f"n_{status}": count for status, count in counts.items()},
        "n_alerts": len(alerts),
        "last_seq": max(last, *(alert.seq for alert in alerts), 0),
        "axis": line.axis,
        "lambda": finite(float(line.lam)),
        "points": size,
        "best": None if line.best is None else _place(line, line.best),
        "top3": [_place(line, index) for index in line.candidates[:3]],
        "last": _place(line, size - 1) if size else None,
        "notes": [note.text for note in line.notes],
        "settings": "" if current is None else current.fingerprint,
        "settings_by_fingerprint": settings,
        "alert": alert_state(alerts),
        "watcher": watcher,
    }


def _summary(evaluations: Sequence[Evaluation]) -> tuple[dict[str, int], list[Settings], int]:
    """Evaluations by status, the settings in use, the largest sequence number."""
    if isinstance(evaluations, History):
        counts = {status: evaluations.count(status) for status in STATUSES}
        return counts, evaluations.settings(), evaluations.last_seq
    counts: dict[str, int] = {status: 0 for status in STATUSES}
    for evaluation in evaluations:
        counts[evaluation.status] += 1
    used = dict.fromkeys(e.settings for e in evaluations if e.settings is not None)
    return counts, list(used), max((e.seq for e in evaluations), default=0)


def alert_state(alerts: Sequence[Alert]) -> dict[str, Any]:
    """The alert that matters now: the gravest among those whose last word is ``firing`` or ``pending``.

    Alerts of severity ``info`` (a plateau) are news, not alarms, and do not count; nor do test alerts.

    Returns:
        ``status`` ("none" if there is no such alert), and if there is one the fields of that Alert.
    """
    last: dict[str, Alert] = {}
    for alert in sorted(alerts, key=lambda record: record.seq):
        if alert.kind != "test":
            last[_topic(alert)] = alert
    active = [alert for alert in last.values() if alert.status in STATUS_RANK and alert.severity != "info"]
    if not active:
        return {"status": "none"}
    gravest = max(
        active,
        key=lambda alert: (
            STATUS_RANK[alert.status],
            KIND_RANK.get(alert.kind, 0),
            SEVERITY_RANK.get(alert.severity, 0),
            alert.seq,
        ),
    )
    return to_json(gravest)


def _topic(alert: Alert) -> str:
    """What the firing and the resolving of one rule have in common: a kind may hold several rules."""
    parts = alert.key.rsplit("/", 2)  # RUN/RULE, EPISODE, MARK
    return parts[0] if len(parts) == 3 else alert.kind


def _place(line: Series, index: int) -> dict[str, Any]:
    evaluation = line.evaluations[index]
    return {
        "seq": evaluation.seq,
        "x": finite(float(line.x[index])),
        "epoch": evaluation.source.epoch,
        "step": evaluation.source.step,
        "path": evaluation.source.path,
        "dse": finite(float(line.dse[index])),
        "dse_se": finite(float(line.dse_se[index])),
    }
