"""The key of an alert: which change of which rule it reports. Records and ledgers hold it as text."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from dse_monitor.runs.record import Alert


class Change(enum.Enum):
    """What happened to a rule; the values are how a key spells it."""

    FIRING = "firing"
    CRITICAL = "firing-critical"  # it fired before and has grown since
    REMINDER = "firing-reminder"  # it goes on; the key adds the number of the reminder
    RESOLVED = "resolved"


_WRITTEN = re.compile(
    r"(?P<run>.*)/(?P<rule>[^/]*)/(?P<episode>\d+)/"
    r"(?:(?P<change>firing|firing-critical|resolved)|firing-reminder-(?P<reminder>\d+))",
    re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class AlertKey:
    """Equal for two reports of the same change. As text: ``run/rule/episode/change``.

    Attributes:
        run: the run's name.
        rule: the rule's name.
        episode: counts how often the rule began to fire, from 1.
        change: what happened.
        reminder: number of a reminder, from 1; 0 for other changes.
    """

    run: str
    rule: str
    episode: int
    change: Change
    reminder: int = 0

    def __str__(self) -> str:
        number = f"-{self.reminder}" if self.change is Change.REMINDER else ""
        return f"{self.run}/{self.rule}/{self.episode}/{self.change.value}{number}"

    @property
    def status(self) -> str:
        """The alert's status: ``firing`` or ``resolved``."""
        return "resolved" if self.change is Change.RESOLVED else "firing"

    @classmethod
    def parse(cls, text: str) -> AlertKey:
        """The inverse of ``str``.

        Raises:
            ValueError: the text is not a key.
        """
        found = _WRITTEN.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is not the key of an alert; expected run/rule/episode/change")
        return cls(
            run=found["run"],
            rule=found["rule"],
            episode=int(found["episode"]),
            change=Change(found["change"]) if found["change"] else Change.REMINDER,
            reminder=int(found["reminder"] or 0),
        )

    @classmethod
    def of(cls, alert: Alert) -> AlertKey:
        """The key of an alert; for one whose key cannot be read, the first episode of its kind."""
        try:
            return cls.parse(alert.key)
        except ValueError:
            change = Change.RESOLVED if alert.status == "resolved" else Change.FIRING
            return cls(run=alert.run, rule=alert.kind, episode=1, change=change)
