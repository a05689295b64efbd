"""Alerts to a program of the user's: the sink ``command:PROGRAM ARGUMENTS``."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from dse_monitor.alerts import message
from dse_monitor.alerts.sinks.delivery import Retry
from dse_monitor.errors import OutputError
from dse_monitor.runs.record import Alert, to_json

COMMAND_SECONDS = 30.0  # a program that takes longer is ended; chosen by us


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


def make(argument: str, link: str) -> Command:
    """The sink ``command:PROGRAM ARGUMENTS``; the argument is split into words as a shell would do it."""
    try:
        argv = tuple(shlex.split(argument))
    except ValueError as error:
        raise OutputError(f"the alert command cannot be split into words: {error}") from None
    if not argv:
        raise OutputError("the alert command is empty; expected command:PROGRAM ARGUMENTS")
    return Command(argv, link)
