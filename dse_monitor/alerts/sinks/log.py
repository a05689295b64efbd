"""Alerts as lines in the watcher's own output: the sink ``log``."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from dse_monitor.alerts import message
from dse_monitor.errors import OutputError
from dse_monitor.runs.record import Alert

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


def make(argument: str, link: str) -> Log:
    """The sink ``log``."""
    if argument:
        raise OutputError(f"the sink log takes no argument, found {argument!r}")
    return Log(link)
