"""What a sink is, and what writes one: the contract between the outbox and everything that takes alerts.

A sink named ``KIND:ARGUMENT`` on a command line is made by the factory of KIND in SINKS or in a plugin::

    def make(argument: str, link: str) -> Sink: ...

``argument`` is what stands behind the first colon, empty without one. ``link`` is the address of the charts,
to be added to messages; it may be empty. A factory checks what it can without a connection, so that a mistake
stops the command rather than the first alert, and raises OutputError, with what was found, what was expected
and what to do. It is called once when a command is checked and again in the watcher: it has no side effects.
Secrets are not arguments but are named by them: see :func:`~dse_monitor.alerts.sinks.secret.read_secret`.

The sink is called with one Alert at a time, from a thread of its own. It blocks until the alert is delivered,
sets time limits itself, and raises

    Retry      not delivered, may be later: the next attempt comes after a wait that doubles, for a day
    Refused    never will be: the alert is given up and recorded as refused
    DSEError   as Retry, for what a user can repair meanwhile, such as a missing secret

Any other exception counts as Retry with the name of its class as the reason; its text is not shown, as it may
hold a secret. An alert may come twice, after a crash; receivers can tell by its key (:func:`digest`).
"""

from __future__ import annotations

import hashlib
from typing import Protocol

from dse_monitor.runs.record import Alert

SEVERITIES = ("info", "warning", "critical")


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
        """Least severity it receives: ``info``, ``warning`` or ``critical``."""
        ...

    def __call__(self, alert: Alert) -> None:
        """Deliver; raise Retry or Refused when that fails. Any other exception counts as Retry."""
        ...


def episode(alert: Alert) -> str:
    """What the firing and the resolving of one alert have in common."""
    return alert.key.rsplit("/", 1)[0]


def digest(key: str) -> str:
    """Sixteen hexadecimal digits of a key."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]
