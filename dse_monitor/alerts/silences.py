"""Silences: rules about which nothing is said, for a time or until what they report has ended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dse_monitor.alerts.status import KINDS, Status

ALL = "all"  # in place of a rule's name


def silence_fact(rule: str, *, now: float, seconds: float | None = None) -> dict[str, Any]:
    """Data of a ledger fact of kind ``silence``.

    Args:
        rule: a rule's name, or ``all``.
        now: seconds since 1970.
        seconds: how long; None until the alert is resolved, 0 to take back silences of this rule.

    Raises:
        ValueError: there is no such rule, or the time is negative.
    """
    if rule not in (*KINDS, ALL):
        raise ValueError(f"there is no rule {rule!r}; there are {', '.join(KINDS)} and all")
    if seconds is not None and not 0 <= seconds < math.inf:
        raise ValueError(f"a silence lasts a time that is not negative, found {seconds} s")
    return {"rule": rule, "since": now, "until": None if seconds is None else now + seconds}


@dataclass(frozen=True)
class _Silence:
    rule: str
    until: float | None  # None: until resolved


class Silences:
    """The silences in force for one run."""

    def __init__(self) -> None:
        self._silences: list[_Silence] = []
        self._was_firing: set[str] = set()

    def add(self, fact: Mapping[str, Any]) -> None:
        """Take in data of a ``silence`` fact (see :func:`silence_fact`); it may take earlier ones back."""
        rule, until = str(fact["rule"]), fact.get("until")
        if until is not None and float(until) <= float(fact.get("since", 0.0)):
            self._silences = [s for s in self._silences if rule not in (s.rule, ALL)]
        else:
            self._silences.append(_Silence(rule, None if until is None else float(until)))

    def restore(self, facts: Iterable[Mapping[str, Any]], resolved: Mapping[str, float]) -> None:
        """Take in the facts of an earlier watcher, less those that had ended with their alert.

        Args:
            facts: data of ``silence`` facts, in order.
            resolved: when each rule was last reported as resolved, s since 1970.
        """
        for fact in facts:
            rule, since = str(fact["rule"]), float(fact.get("since", 0.0))
            over = [t for name, t in resolved.items() if rule in (name, ALL)]
            if fact.get("until") is not None or not any(t >= since for t in over):
                self.add(fact)

    def cover(self, rule: str, now: float) -> bool:
        """Whether nothing is to be said about a rule now."""
        return any(s.rule in (rule, ALL) and (s.until is None or now < s.until) for s in self._silences)

    def end(self, current: Mapping[str, Status], now: float) -> None:
        """Drop the silences whose time is over, or whose alert has just been resolved."""
        firing = {rule for rule, status in current.items() if status.status == "firing"}
        over = self._was_firing - firing
        self._was_firing = firing
        self._silences = [s for s in self._silences if not _has_ended(s, over, now)]


def _has_ended(silence: _Silence, over: set[str], now: float) -> bool:
    if silence.until is not None:
        return now >= silence.until
    return silence.rule in over or (silence.rule == ALL and bool(over))
