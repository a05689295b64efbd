"""What a sink is: one callable that takes an Alert and returns once it is delivered, or says why not."""

from __future__ import annotations

from typing import Protocol

from dse_monitor.runs.record import Alert


class Retry(Exception):
    """Not delivered, but may be later: the other side is down, slow, busy or misconfigured.

    Args:
        reason: one line without secrets.
        after: seconds the other side asked to wait; None if it did not.
    """

    def __init__(self, reason: str, after: float | None = None):
        super().__init__(reason)
        self.after = after


class Refused(Exception):
    """Not delivered, and the same message never will be. The text is one line without secrets."""


class Sink(Protocol):
    """Where alerts go."""

    @property
    def name(self) -> str:
        """Equal for the same sink after a restart, and without secrets: it stands in logs and records."""
        ...

    @property
    def least(self) -> str:
        """Least severity it is told: ``info``, ``warning`` or ``critical``."""
        ...

    def __call__(self, alert: Alert) -> None:
        """Deliver; raise Retry or Refused when that fails. Any other exception counts as Retry."""
        ...
