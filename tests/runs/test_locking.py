"""One watcher per run; a dead one is taken over."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict

import pytest

from dse_monitor.errors import OutputError, RunError
from dse_monitor.runs import heartbeat, locking
from dse_monitor.runs.locking import Holder, RunLock
from dse_monitor.runs.status import read_status, render

pytestmark = pytest.mark.fast


def _held_by(folder, holder):
    folder.mkdir(exist_ok=True)
    (folder / "watch.lock").write_text(json.dumps(asdict(holder)))


def _dead():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_lock_is_refused_to_a_second_and_free_after_release(tmp_path):
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    assert first.take() is None
    with pytest.raises(RunError, match=rf"process {os.getpid()} on {socket.gethostname()}"):
        second.take()
    first.release()
    assert second.take() is None
    second.release()


def test_lock_of_a_dead_process_is_taken_over(tmp_path):
    dead = Holder(socket.gethostname(), _dead(), Holder.me().boot, 5)
    _held_by(tmp_path, dead)
    lock = RunLock(tmp_path)
    assert lock.take() == dead
    lock.release()


def test_other_machine_holds_as_long_as_its_heart_beats(tmp_path):
    elsewhere = Holder("another-host", 4711, "boot", 1)
    _held_by(tmp_path, elsewhere)
    beat = tmp_path / heartbeat.NAME
    beat.write_text("{}")
    with pytest.raises(RunError, match="process 4711 on another-host"):
        RunLock(tmp_path).take(heartbeat=beat)
    old = beat.stat().st_mtime - locking.FRESH_SECONDS - 5
    os.utime(beat, (old, old))
    lock = RunLock(tmp_path)
    assert lock.take(heartbeat=beat) == elsewhere
    lock.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["watch.lock", "watcher.json"]


def test_without_flock_the_process_named_in_the_file_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "_flock", lambda descriptor: None)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        _held_by(tmp_path, Holder(socket.gethostname(), other.pid, Holder.me().boot, 0))
        with pytest.raises(RunError, match=f"process {other.pid}"):
            RunLock(tmp_path).take()
    finally:
        other.communicate(b"\n")
    lock = RunLock(tmp_path)
    assert lock.take() is not None
    lock.release()
    again = Holder(socket.gethostname(), os.getppid(), Holder.me().boot, 1)  # the pid is used by another now
    _held_by(tmp_path, again)
    assert not again.alive
    lock = RunLock(tmp_path)
    assert lock.take() == again
    lock.release()


def test_unreadable_lock_file_is_nobodys(tmp_path):
    (tmp_path / "watch.lock").write_text("{half")
    lock = RunLock(tmp_path)
    assert lock.take() is None
    lock.release()


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "dse").write_text("a file")
    with pytest.raises(OutputError, match="dse"):
        RunLock(tmp_path / "dse").take()


def test_status_tells_who_works_and_what_is_done(tmp_path):
    assert "no watcher has worked here" in render(read_status(tmp_path, now=0.0))
    beat = heartbeat.new(
        "0.1.0",
        5.0,
        state="evaluating",
        scored=3,
        queue=2,
        current="c.pth",
        progress=("forward", 5, 10),
        last_error="bad file",
    )
    beat.write(tmp_path)
    now = (tmp_path / heartbeat.NAME).stat().st_mtime + 4
    status = read_status(tmp_path, now=now)
    assert status.alive
    assert status.age == pytest.approx(4)
    assert status.heartbeat == beat
    text = render(status)
    for part in ("watched", "3 scored", "2 waiting", "c.pth   forward 5 of 10", "bad file"):
        assert part in text
    assert json.loads(json.dumps(status.to_json()))["heartbeat"]["queue"] == 2


def test_status_of_a_watcher_that_is_gone(tmp_path):
    def at(**changes):
        beat = {**asdict(heartbeat.new("0.1.0", 5.0)), **changes}
        heartbeat.Heartbeat(**beat).write(tmp_path)
        return read_status(tmp_path, now=(tmp_path / heartbeat.NAME).stat().st_mtime + 500)

    assert not at(state="ended").alive
    assert not at(pid=_dead()).alive
    assert not at(boot="another boot").alive
    assert not at(host="another-host").alive
    assert at().alive
