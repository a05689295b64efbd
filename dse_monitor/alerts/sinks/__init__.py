"""SINKS: the ways an alert reaches people, and how one is named on a command line.

    log                    a line in the watcher's own output
    command:PROGRAM ARGS   a program of yours; the alert as JSON on its input
    webhook:env:NAME       a chat room (Slack, Mattermost, Discord with /slack)
    alertmanager:env:NAME  whatever reads Alertmanager's webhook JSON
    email:env:NAME         an SMTP account

To add one: a file with a factory as delivery.py describes it and its line below, or the same file in a
package of yours with an entry point in the group ``dse_monitor.sinks``; docs/adding.md. A sink's module is
imported when it is named, so a watcher without sinks is spared the memory of HTTP and SMTP clients.

Services without such an address (Telegram, Matrix, Teams, ...) are reached with the command sink, for
instance through the apprise program. Its library is not used here: it says only whether sending worked, and
so cannot tell a server that asks for patience from one that will never accept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dse_monitor.alerts.sinks.delivery import SEVERITIES, Sink
from dse_monitor.errors import DSEError, OutputError, PluginError
from dse_monitor.plugins import Registry

SINKS: dict[str, str] = {
    "log": "dse_monitor.alerts.sinks.log:make",
    "command": "dse_monitor.alerts.sinks.command:make",
    "webhook": "dse_monitor.alerts.sinks.webhook:make",
    "alertmanager": "dse_monitor.alerts.sinks.alertmanager:make",
    "email": "dse_monitor.alerts.sinks.mail:make",
}


def from_spec(spec: str, link: str = "") -> Sink:
    """The sink a user named.

    Args:
        spec: ``log``, ``command:PROGRAM ARGS``, or ``webhook:``, ``alertmanager:`` or ``email:`` followed by
            ``env:NAME`` or ``file:PATH``, or ``KIND:ARGUMENT`` as a plugin describes it.
        link: address of the charts, added to messages.

    Raises:
        OutputError: there is no such sink, or its secret is missing or malformed.
        PluginError: it is a plugin's and cannot be used.
    """
    kind, _, argument = spec.partition(":")
    try:
        make = REGISTRY.load(kind)
    except KeyError:
        known = ", ".join(REGISTRY.names())
        raise OutputError(f"there is no alert sink {kind!r}; there are {known}") from None
    if not (origin := REGISTRY.origin(kind)):
        return make(argument, link)
    try:
        sink = make(argument, link)
    except DSEError:
        raise
    except Exception as error:  # its text is left out, as it may hold a secret
        text = f"the alert sink {kind!r} of {origin} cannot be made: {type(error).__name__}"
        raise PluginError(text) from error
    if breach := _breach(sink):
        raise PluginError(f"the alert sink {kind!r} of {origin} breaks the contract: {breach}")
    return sink


def check(kind: str, make: Any) -> None:
    """The contract of what a plugin's entry point gives, as far as it can be seen before it is called.

    Raises:
        TypeError: it is no factory.
    """
    if not callable(make):
        raise TypeError(f"expected a factory (argument, link) -> Sink, found {make!r}")


def _breach(sink: Any) -> str:
    """How what a plugin's factory made is not a sink; empty if it is one."""
    if not callable(sink) or not isinstance(getattr(sink, "name", None), str):
        return f"expected a Sink (name, least, __call__), found {type(sink).__name__}"
    least = getattr(sink, "least", None)
    return "" if least in SEVERITIES else f"least must be one of {', '.join(SEVERITIES)}, found {least!r}"


REGISTRY: Registry[Callable[[str, str], Sink]] = Registry("dse_monitor.sinks", "alert sink", SINKS, check)
