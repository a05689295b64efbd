"""SINKS: the ways an alert reaches people, and how one is named on a command line.

    log                    a line in the watcher's own output
    command:PROGRAM ARGS   a program of yours; the alert as JSON on its input
    webhook:env:NAME       a chat room (Slack, Mattermost, Discord with /slack)
    alertmanager:env:NAME  whatever reads Alertmanager's webhook JSON
    email:env:NAME         an SMTP account

Services without such an address (Telegram, Matrix, Teams, ...) are reached with the command sink, for
instance through the apprise program. Its library is not used here: it says only whether sending worked, and
so cannot tell a server that asks for patience from one that will never accept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dse_monitor.alerts import message
from dse_monitor.alerts.sinks.delivery import Retry, Sink
from dse_monitor.alerts.sinks.mail import Mail
from dse_monitor.alerts.sinks.webhook import Webhook, alertmanager_body
from dse_monitor.errors import OutputError
from dse_monitor.runs.record import Alert, to_json

COMMAND_SECONDS = 30.0  # a program that takes longer is ended; ours
LOGGER = logging.getLogger("dse_monitor.alerts")


@dataclass(frozen=True)
class Log:
    """Writes an alert to the log."""

    link: str = ""
    name: str = "log"
    least: str = "info"

    def __call__(self, alert: Alert) -> None:
        """Log one alert; warnings as warnings."""
        grave = alert.status == "firing" and alert.severity != "info"
        LOGGER.log(logging.WARNING if grave else logging.INFO, "%s", message.text(alert, self.link))


@dataclass(frozen=True)
class Command:
    """Runs a program for each alert: no shell, the alert as JSON on its input, its essentials in ``DSE_*``.

    The program succeeds with exit code 0. After ``timeout_seconds`` it is ended with all it has started.
    What it prints is discarded.

    Attributes:
        argv: program and arguments.
        link: address of the charts, if there is one.
        timeout_seconds: how long it may take.
    """

    argv: tuple[str, ...]
    link: str = ""
    timeout_seconds: float = COMMAND_SECONDS
    least: str = "warning"

    @property
    def name(self) -> str:
        """The program's name and a digest of the arguments, which may hold secrets."""
        digest = hashlib.sha256("\0".join(self.argv).encode()).hexdigest()[:6]
        return f"command:{os.path.basename(self.argv[0])}#{digest}"

    def __call__(self, alert: Alert) -> None:
        """Run the program once."""
        try:
            process = subprocess.Popen(
                self.argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **environment(alert, self.link)},
                start_new_session=True,
            )
        except OSError as error:
            raise Retry(f"cannot be started: {error.strerror}") from None
        with process:
            try:
                process.communicate(json.dumps(to_json(alert)).encode(), timeout=self.timeout_seconds)
            except subprocess.TimeoutExpired:
                raise Retry(f"took longer than {self.timeout_seconds:g} s and was ended") from None
            finally:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
        if process.returncode:
            raise Retry(f"ended with code {process.returncode}")


def environment(alert: Alert, link: str = "") -> Mapping[str, str]:
    """An alert as variables ``DSE_RUN``, ``DSE_KIND``, ``DSE_TEXT``, ...; what is unknown is empty."""
    values = {
        "RUN": alert.run,
        "KIND": alert.kind,
        "STATUS": alert.status,
        "SEVERITY": alert.severity,
        "EPOCH": _plain(alert.epoch),
        "STEP": _plain(alert.step),
        "BEST": alert.best_path,
        "BEST_AT": _plain(alert.best_at),
        "CAUSE": alert.cause,
        "TITLE": message.title(alert),
        "TEXT": message.text(alert, link),
        "KEY": alert.key,
    }
    return {f"DSE_{name}": value for name, value in values.items()}


def _plain(count: float | None) -> str:
    return "" if count is None else f"{count:.15g}"


def _command(argument: str, link: str) -> Sink:
    try:
        argv = tuple(shlex.split(argument))
    except ValueError as error:
        raise OutputError(f"the alert command cannot be split into words: {error}") from None
    if not argv:
        raise OutputError("the alert command is empty; expected command:PROGRAM ARGUMENTS")
    return Command(argv, link)


def _log(argument: str, link: str) -> Sink:
    if argument:
        raise OutputError(f"the sink log takes no argument, found {argument!r}")
    return Log(link)


SINKS: dict[str, Callable[[str, str], Sink]] = {
    "log": _log,
    "command": _command,
    "webhook": lambda address, link: Webhook(f"webhook:{address}", address, link=link),
    "alertmanager": lambda address, link: Webhook(
        f"alertmanager:{address}", address, alertmanager_body, link
    ),
    "email": lambda account, link: Mail(f"email:{account}", account, link),
}


def from_spec(spec: str, link: str = "") -> Sink:
    """The sink a user named.

    Args:
        spec: ``log``, ``command:PROGRAM ARGS``, or ``webhook:``, ``alertmanager:`` or ``email:`` followed by
            ``env:NAME`` or ``file:PATH``.
        link: address of the charts, added to messages.

    Raises:
        OutputError: there is no such sink, or its secret is missing or malformed.
    """
    kind, _, argument = spec.partition(":")
    if kind not in SINKS:
        raise OutputError(f"there is no alert sink {kind!r}; there are {', '.join(SINKS)}")
    return SINKS[kind](argument, link)
