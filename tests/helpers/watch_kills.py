"""A run worth an alert, every write that makes its record, and what must be left of it in the end."""

from __future__ import annotations

import json
import os

from watch_fakes import write_checkpoint

from dse_monitor import atomic
from dse_monitor.publish import events
from dse_monitor.runs import ledger

RISE_AND_FALL = [0.80, 0.84, 0.88, 0.92, 0.96, 1.00, 0.97, 0.90, 0.82, 0.74]  # m_inter: enough for an alert


def make_run(folder):
    for number, m_inter in enumerate(RISE_AND_FALL):
        write_checkpoint(
            folder / f"checkpoint{number:04d}.pth", epoch=number + 1.0, value=number, m_inter=m_inter
        )
    return folder


def writes(monkeypatch, hit):
    """Call ``hit(path, half)`` before and after each write of ledger, event data and small files."""
    ledger_write, append, whole = ledger.Ledger._write, events.EventFile.append, atomic.write_text

    def write_line(self, line, sync):
        hit(lambda: os.write(self._descriptor, line[: len(line) // 2]))
        ledger_write(self, line, sync)
        hit(None)

    def append_events(self, written):
        hit(None)
        append(self, written)
        hit(None)

    def write_text(path, text):
        hit(lambda: path.with_name(f".{path.name}.1.part").write_text(text[: len(text) // 2]))
        whole(path, text)
        hit(None)

    monkeypatch.setattr(ledger.Ledger, "_write", write_line)
    monkeypatch.setattr(events.EventFile, "append", append_events)
    monkeypatch.setattr(atomic, "write_text", write_text)


def outcome(run):
    view = ledger.read(run / "dse")
    marked = json.loads((run / "dse" / "best.json").read_text())
    return {
        "scores": sorted((e.source.path, e.status, e.components) for e in view.evaluations),
        "alerts": sorted((a.key, a.status, a.epoch) for a in view.alerts),
        "best": marked["best"]["path"],
        "kept": sorted(path.name for path in (run / "dse" / "keep").iterdir()),
        "warnings": view.warnings,
    }
