"""The alerts' judgements on checkpoints, kept in a file so that the next start need not make them again."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from dse_monitor import atomic

if TYPE_CHECKING:
    from dse_monitor.watch.dependencies import RunAlerts

NAME = "judged.json"  # below the output folder
SAVE_EVERY = 500  # new judgements after which the file is written; chosen by us. At the end it always is


class JudgementFile:
    """Keeps what was judged. Without it a start only takes longer, so nothing here raises.

    Args:
        out: the run's output folder.
        alerts: which judge.
    """

    def __init__(self, out: Path, alerts: RunAlerts):
        self._path, self._alerts = out / NAME, alerts
        self._saved = 0  # checkpoints whose judgements lie in the file

    def load(self) -> None:
        """Hand the alerts what an earlier watcher judged."""
        with contextlib.suppress(OSError, ValueError):
            self._alerts.recall(json.loads(self._path.read_bytes()))

    def save(self, least: int = SAVE_EVERY) -> None:
        """Write the file if there are at least so many new judgements."""
        count = self._alerts.judged
        if abs(count - self._saved) >= least:
            with contextlib.suppress(OSError):
                atomic.write_text(self._path, json.dumps(self._alerts.judgements()) + "\n")
                self._saved = count
