"""Alerts as lines of JSON at the end of a file: the sink ``lines:PATH``."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from dse_monitor.alerts.sinks.delivery import Retry
from dse_monitor.errors import OutputError
from dse_monitor.runs.record import Alert, to_json


@dataclass(frozen=True)
class Lines:
    """Appends one line per alert.

    Attributes:
        path: the file; it is made when the first alert comes.
        link: address of the charts, if there is one.
        least: least severity it receives.
    """

    path: Path
    link: str = ""
    least: str = "info"

    @property
    def name(self) -> str:
        """Equal after a restart, whatever the current folder is."""
        return f"lines:{self.path}"

    def __call__(self, alert: Alert) -> None:
        """Append one alert; it is on the disk when this returns."""
        line = json.dumps({**to_json(alert), "link": self.link})
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise Retry(f"{self.path.name}: {error.strerror}") from error


def make(argument: str, link: str) -> Lines:
    """The sink ``lines:PATH``."""
    path = Path(argument).expanduser().absolute()
    if not argument or not path.parent.is_dir():
        raise OutputError(f"found lines:{argument}; expected lines:PATH with PATH in a folder that exists")
    return Lines(path, link)
