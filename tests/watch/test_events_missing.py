"""Change events are hints: without any, scans find everything."""

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from watch_fakes import write_checkpoint

from dse_monitor.runs import ledger
from dse_monitor.watch.dependencies import Dependencies
from dse_monitor.watch.run.poller import SCAN_SECONDS

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[2]


class _Deaf:
    """A source of events that says nothing, as on disks that other machines write to."""

    alive = True

    def __init__(self, folder, wake, out):
        pass

    def start(self):
        pass

    def stop(self):
        pass

    def take(self):
        return None


def _full(folder, wake, out):
    raise OSError(errno.ENOSPC, "inotify watch limit reached")


def _watch_two(run, watch):
    """A checkpoint that was there and one that comes later; scored within so many seconds."""
    write_checkpoint(run / "checkpoint0001.pth", epoch=2.0)
    watch.step(5)
    write_checkpoint(run / "checkpoint0002.pth", epoch=3.0)
    watch.step(2 * SCAN_SECONDS)
    return [e.source.path for e in ledger.read(run / "dse").evaluations]


def test_without_room_for_change_events_scans_find_everything(tmp_path, watching):
    run = tmp_path / "exp1"
    run.mkdir()
    dependencies = dataclasses.replace(Dependencies.real(), hints=_full)
    watch = watching(run, dependencies=dependencies, poll_seconds=None)
    assert _watch_two(run, watch) == ["checkpoint0001.pth", "checkpoint0002.pth"]
    told = [line for line in watch.console.lines if "no change events" in line]
    assert len(told) == 1
    assert "inotify watch limit reached" in told[0]


def test_events_that_never_come_delay_and_lose_nothing(tmp_path, watching):
    run = tmp_path / "exp1"
    run.mkdir()
    watch = watching(
        run, dependencies=dataclasses.replace(Dependencies.real(), hints=_Deaf), poll_seconds=None
    )
    assert _watch_two(run, watch) == ["checkpoint0001.pth", "checkpoint0002.pth"]


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from watch_fakes import FakeClock, Watching, write_checkpoint
run = Path({run!r})
with Watching(FakeClock(), run, poll_seconds=None) as watch:
    watch.step(40)
    print("\\n".join(watch.console.lines))
"""


def test_a_real_limit_of_the_kernel_is_met_at_the_start(tmp_path):
    """A user namespace of its own, in which nobody may watch anything."""
    run = tmp_path / "exp1"
    write_checkpoint(run / "checkpoint0001.pth", epoch=2.0)
    limit = "/proc/sys/user/max_inotify_watches"
    if not os.path.exists(limit):
        pytest.skip("this kernel has no limit per namespace")
    program = PROGRAM.format(tests=str(Path(__file__).parents[1] / "helpers"), run=str(run))
    command = f'echo 0 > {limit} && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", command, sys.executable, program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode and ("unshare" in done.stderr or limit in done.stderr):
        pytest.skip(f"no namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert "no change events" in done.stdout
    assert len(ledger.read(run / "dse").evaluations) == 1
