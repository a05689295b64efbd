"""From a change worth reporting to the alert that reports it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from dse_monitor.alerts import message
from dse_monitor.alerts.evidence import Evidence
from dse_monitor.alerts.keys import AlertKey, Change
from dse_monitor.alerts.parameters import Rules
from dse_monitor.alerts.rules import errors, shares
from dse_monitor.alerts.status import KINDS, Status
from dse_monitor.runs.record import Alert, Evaluation
from dse_monitor.runs.series import Series


def compose(
    key: AlertKey, status: Status, evidence: Evidence, rules: Rules, *, causes: bool, now: float
) -> Alert:
    """The alert, with its whole story.

    Args:
        key: what it reports.
        status: where its rule stands.
        evidence: what is known of the run.
        rules: when to speak.
        causes: whether a cause can be named.
        now: seconds since 1970.
    """
    series = evidence.trace.series()
    newest = next(reversed(evidence.seen_by(key.rule)), None)
    best = series.evaluations[series.best].source if series.best is not None else None
    alert = Alert(
        kind=KINDS[key.rule],
        status=key.status,
        severity=status.severity,
        run=key.run,
        epoch=newest.source.epoch if newest else None,
        step=newest.source.step if newest else None,
        since=status.since,
        axis=series.axis,
        best_at=float(series.x[series.best]) if series.best is not None else None,
        best_path=best.path if best else "",
        layout=best.layout if best else "",
        lam=series.lam,
        key=str(key),
        wall_time=now,
    )
    if key.rule == "degradation":
        since = "" if status.since is None else series.place(int(np.searchsorted(series.x, status.since)))
        return _with_drop(alert, series, since, causes=causes, still=key.change is Change.REMINDER)
    return dataclasses.replace(
        alert, message=_story(key.rule, status, alert, newest, series, evidence, rules)
    )


def _with_drop(alert: Alert, series: Series, since: str, *, causes: bool, still: bool) -> Alert:
    """The alert with its drop and its story; ``since`` is where that began, in words."""
    assert series.best is not None
    best, last = series.best, len(series) - 1
    counted = ~series.untrained
    sigma = np.full(len(series), np.nan)
    sigma[counted] = errors(series.x[counted], series.dse[counted], series.dse_se[counted])
    sigma = np.where(np.isfinite(series.dse_se), series.dse_se, sigma)
    drop_se = math.hypot(sigma[best], sigma[last])
    part, cause = shares(
        float(series.separability[best] - series.separability[last]),
        float(series.m_dim[best] - series.m_dim[last]),
        series.lam,
    )
    alert = dataclasses.replace(
        alert,
        drop=float(series.dse[best] - series.dse[last]),
        drop_se=drop_se if math.isfinite(drop_se) else math.nan,
        shares=part if causes else {},
        cause=cause if causes else "",
    )
    story = message.degradation(
        alert, now=series.place(last), best=series.place(best), since=since, still=still
    )
    return dataclasses.replace(alert, message=story)


def _story(
    rule: str,
    status: Status,
    alert: Alert,
    newest: Evaluation | None,
    series: Series,
    evidence: Evidence,
    rules: Rules,
) -> str:
    path = newest.source.path if newest else "the newest checkpoint"
    reason = newest.reason if newest else ""
    if rule == "non-finite":
        return message.non_finite(alert, path, reason)
    if rule == "failures":
        return message.failures(alert, path, reason, status.streak)
    if rule == "stale":
        return message.stale(alert, path, alert.wall_time - evidence.last_time)
    return message.plateau(alert, series.place(len(series) - 1), rules.plateau)
