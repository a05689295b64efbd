"""A watcher killed at any write loses nothing, repeats no score, and tells no alert twice.

The killed watcher is a real process (a fork of this one) that ends itself by SIGKILL inside the n-th write.
"""

import itertools
import json
import os
import signal

import pytest
from watch_fakes import FakeClock, Watching, write_checkpoint

from dse_monitor import atomic
from dse_monitor.publish import events
from dse_monitor.runs import ledger

STRIDE = 4  # so many tests share the writes, that none is long
RISE_AND_FALL = [0.80, 0.84, 0.88, 0.92, 0.96, 1.00, 0.97, 0.90, 0.82, 0.74]  # m_inter: enough for an alert


def _make_run(folder):
    for number, m_inter in enumerate(RISE_AND_FALL):
        write_checkpoint(
            folder / f"checkpoint{number:04d}.pth", epoch=number + 1.0, value=number, m_inter=m_inter
        )
    return folder


def _watch(run, clock=None):
    with Watching(clock or FakeClock(), run, once=True, keep_best=1) as watch:
        assert watch.run() == 0
        return watch


def _writes(monkeypatch, hit):
    """Call ``hit(path, half)`` before and after each write of ledger, event data and small files."""
    ledger_write, append, whole = ledger.Ledger._write, events._EventFile.append, atomic.write_text

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
    monkeypatch.setattr(events._EventFile, "append", append_events)
    monkeypatch.setattr(atomic, "write_text", write_text)


def _killed_at(run, point, monkeypatch):
    """Watch in a child that dies inside write number ``point``; False when it came through to the end."""
    child = os.fork()
    if child == 0:
        count = 0

        def hit(half):
            nonlocal count
            count += 1
            if count == point:
                if half is not None:
                    half()
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            _writes(monkeypatch, hit)
            _watch(run)
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def _outcome(run):
    view = ledger.read(run / "dse")
    marked = json.loads((run / "dse" / "best.json").read_text())
    return {
        "scores": sorted((e.source.path, e.status, e.components) for e in view.evaluations),
        "alerts": sorted((a.key, a.status, a.epoch) for a in view.alerts),
        "best": marked["best"]["path"],
        "kept": sorted(path.name for path in (run / "dse" / "keep").iterdir()),
        "warnings": view.warnings,
    }


@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(1, STRIDE + 1))
def test_killed_at_every_write_and_started_again_gives_the_same(tmp_path, monkeypatch, first):
    reference = _make_run(tmp_path / "reference" / "exp1")
    _watch(reference)
    expected = _outcome(reference)
    assert len(expected["scores"]) == len(RISE_AND_FALL)
    assert any(status == "firing" for _, status, _ in expected["alerts"])
    killed = 0
    for point in itertools.count(first, STRIDE):
        run = _make_run(tmp_path / str(point) / "exp1")
        if not _killed_at(run, point, monkeypatch):
            break
        killed += 1
        _watch(run)
        assert _outcome(run) == expected, f"killed in write {point}"
        view, found = ledger.read(run / "dse"), events.published(run / "dse")
        assert found.evaluations == {e.seq for e in view.evaluations}, f"killed in write {point}"
        assert {key for _, key in found.alerts} == {a.key for a in view.alerts}
        sequence = [record.seq for record in (*view.evaluations, *view.alerts)]
        assert len(set(sequence)) == len(sequence)
    assert killed >= 100 // STRIDE
