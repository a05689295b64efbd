"""Many processes score one run: as one watcher would, once each, whoever dies."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from watch_fakes import FakeWorker, Recorder, write_checkpoint
from watch_kills import make_run, outcome, writes

from dse_monitor.errors import RunError
from dse_monitor.evaluation.config import EvaluationConfig
from dse_monitor.publish import events
from dse_monitor.runs import ledger
from dse_monitor.runs.locking import RunLock
from dse_monitor.scenes import write_folder
from dse_monitor.watch import ranks, shards
from dse_monitor.watch.options import WatchOptions
from dse_monitor.watch.ranks import Place
from dse_monitor.watch.workers.child import WorkerEnd

ROOT = Path(__file__).parents[2]

STRIDE = 24  # so many tests share the writes, that none is long


def _options(run, **changes):
    asked = {
        "config": EvaluationConfig(images="i"),
        "settle_seconds": 0.0,
        "maps": False,
        "once": True,
        "keep_best": 1,
    }
    return WatchOptions(runs=(run,), **{**asked, **changes})


def _silent(place, evaluation):
    pass


def _score(run, **changes):
    """All of it in one process."""
    return ranks.score(_options(run, **changes), Recorder(), _silent, make_worker=FakeWorker)


def _share(told, rank, world, run, worker=FakeWorker):
    ranks.measure_share(told, Place(rank, world), _options(run), _silent, worker)


def _publish(told, rank, world, run):
    return ranks.publish(told["launch"], Place(rank, world), _options(run), Recorder())


@pytest.fixture
def reference(tmp_path, watching):
    run = make_run(tmp_path / "reference" / "exp1")
    watching(run, once=True, keep_best=1).run()
    return outcome(run)


def test_one_process_does_what_a_watcher_does(tmp_path, reference):
    run = make_run(tmp_path / "exp1")
    assert _score(run) == 0
    assert outcome(run) == reference
    assert not (run / "dse" / shards.FOLDER).exists()


@pytest.mark.parametrize("finish", [(0, 1, 2), (2, 0, 1)])
def test_the_last_of_several_publishes_in_the_order_of_a_watcher(tmp_path, reference, finish):
    run = make_run(tmp_path / "exp1")
    told = ranks.deal(_options(run), Recorder())
    for rank in finish:
        _share(told, rank, 3, run)
        before = len(ledger.read(run / "dse").evaluations)
        assert before == 0
        assert _publish(told, rank, 3, run) == 0
    assert outcome(run) == reference
    view = ledger.read(run / "dse")
    assert [e.source.epoch for e in view.evaluations] == list(range(1, 11))
    assert _publish(told, finish[-1], 3, run) == 0  # one as fast as the last: nothing left for it
    assert outcome(run) == reference


def test_a_share_whose_process_died_is_measured_by_the_next_call(tmp_path, reference):
    run = make_run(tmp_path / "exp1")
    told = ranks.deal(_options(run), Recorder())
    _share(told, 0, 2, run)
    assert _publish(told, 0, 2, run) == 0  # the other one is not done
    assert not ledger.read(run / "dse").evaluations
    left = ranks.deal(_options(run), Recorder())
    assert [task[0] for task in left["tasks"]] == [task[0] for task in told["tasks"][1::2]]
    assert len(ledger.read(run / "dse").evaluations) == len(told["tasks"][::2])
    for rank in range(3):
        _share(left, rank, 3, run)
        _publish(left, rank, 3, run)
    assert outcome(run)["scores"] == reference["scores"]
    assert outcome(run)["best"] == reference["best"]


def test_a_watcher_takes_over_what_was_measured(tmp_path, reference, watching):
    run = make_run(tmp_path / "exp1")
    told = ranks.deal(_options(run), Recorder())
    _share(told, 1, 2, run)
    watch = watching(run, once=True, keep_best=1)
    assert watch.run() == 0
    assert sorted(watch.jobs) == sorted(task[0] for task in told["tasks"][::2])
    assert outcome(run)["scores"] == reference["scores"]
    assert not (run / "dse" / shards.FOLDER).exists()


def test_results_of_other_settings_wait_for_their_own_call(tmp_path, watching):
    run = make_run(tmp_path / "exp1")
    told = ranks.deal(_options(run), Recorder())
    _share(told, 0, 2, run)
    other = watching(run, once=True, config=EvaluationConfig(images="i", seed=7))
    other.run()
    assert len(other.jobs) == 10
    assert len(list(shards.measured(run / "dse"))) == 5
    assert _score(run) == 0
    assert len(ledger.read(run / "dse").evaluations) == 20


def test_links_and_copies_are_measured_once(tmp_path):
    run = tmp_path / "exp1"
    path = write_checkpoint(run / "checkpoint0001.pth", epoch=2.0)
    os.link(path, run / "last.pth")
    told = ranks.deal(_options(run), Recorder())
    assert [task[0] for task in told["tasks"]] == ["checkpoint0001.pth"]
    assert _score(run) == 0
    (evaluation,) = ledger.read(run / "dse").evaluations
    assert evaluation.source.aliases == ("last.pth",)


class _Dying(FakeWorker):
    """Dies on one checkpoint, each time."""

    started = 0

    def __init__(self):
        super().__init__()
        type(self).started += 1
        self._dead = False

    def send(self, job):
        self._dead = job["name"] == "checkpoint0003.pth"
        if not self._dead:
            super().send(job)

    def ended(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return WorkerEnd.of_process(-signal.SIGKILL, b"") if self._dead else None


def test_a_checkpoint_that_kills_its_reader_is_given_up_and_the_others_measured(tmp_path):
    run = make_run(tmp_path / "exp1")
    assert ranks.score(_options(run), Recorder(), _silent, make_worker=_Dying) == 3
    assert _Dying.started == 3  # at first, after the first death, after the second
    found = {e.source.path: e for e in ledger.read(run / "dse").evaluations}
    assert len(found) == 10
    assert found["checkpoint0003.pth"].error == "WorkerCrash"
    assert "SIGKILL" in found["checkpoint0003.pth"].reason
    assert ranks.deal(_options(run), Recorder())["tasks"] == []


def test_files_that_go_or_change_meanwhile_do_no_harm(tmp_path, watching):
    run = make_run(tmp_path / "exp1")
    told = ranks.deal(_options(run), Recorder())
    (run / "checkpoint0002.pth").unlink()
    write_checkpoint(run / "checkpoint0005.pth", epoch=6.0, value=77)
    _share(told, 0, 1, run)
    assert len(list(shards.measured(run / "dse"))) == 8
    watch = watching(run, once=True)
    assert watch.run() == 0
    assert watch.jobs == ["checkpoint0005.pth"]


def test_a_run_under_watch_is_refused_before_anything_is_measured(tmp_path):
    run = make_run(tmp_path / "exp1")
    lock = RunLock(run / "dse")
    lock.take()
    try:
        with pytest.raises(RunError, match="watched"):
            _score(run)
    finally:
        lock.release()
    with pytest.raises(RunError, match="no folder"):
        _score(tmp_path / "missing")


def test_a_live_process_keeps_its_folder(tmp_path, watching):
    run = make_run(tmp_path / "exp1")
    told = ranks.deal(_options(run), Recorder())
    shard = shards.Shard(run / "dse", told["launch"], 0)
    shard.add(next(ranks._measured(told["tasks"][:1], _options(run), "cpu", FakeWorker)))
    watching(run, once=True).run()
    assert len(list(shards.measured(run / "dse"))) == 1
    shard.close()
    _score(run)
    assert not (run / "dse" / shards.FOLDER).exists()
    assert len(ledger.read(run / "dse").evaluations) == 10


def _killed_at(run, point, monkeypatch):
    """Score in a child that dies inside write number ``point``; False when it came through to the end."""
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
            writes(monkeypatch, hit)
            _score(run)
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "first", [1, *(pytest.param(first, marks=pytest.mark.slow) for first in range(4, STRIDE + 1, 3))]
)
def test_killed_at_any_write_and_called_again_gives_the_same(tmp_path, monkeypatch, reference, first):
    """Every third write."""
    killed = 0
    for point in itertools.count(first, STRIDE):
        run = make_run(tmp_path / str(point) / "exp1")
        if not _killed_at(run, point, monkeypatch):
            break
        killed += 1
        assert _score(run) == 0
        found = outcome(run)
        assert found["scores"] == reference["scores"], f"killed in write {point}"
        assert found["best"] == reference["best"]
        view, found = ledger.read(run / "dse"), events.published(run / "dse")
        assert found.evaluations == {e.seq for e in view.evaluations}, f"killed in write {point}"
        assert not (run / "dse" / shards.FOLDER).exists()
    assert killed >= 120 // STRIDE


def _command(module, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def real_run(tmp_path_factory, write_checkpoint):
    """Five checkpoints of a real network, twice, and images."""
    folder = tmp_path_factory.mktemp("ranks")
    write_folder(folder / "images", 12, size=32, seed=1)
    for copy in ("exp1", "exp2"):
        (folder / copy).mkdir()
        for epoch in range(1, 6):
            write_checkpoint(folder / copy / f"checkpoint_{epoch:04d}.pth", seed=epoch)
    return folder


@pytest.mark.timeout(300)
def test_two_real_processes_find_what_one_watcher_finds(real_run):
    asked = ("--images", real_run / "images", "--num-images", 12)
    torchrun = ("--nproc-per-node", 2, "--master-port", 0, "--standalone")
    said = _command(
        "torch.distributed.run", *torchrun, "-m", "dse_monitor", "score", real_run / "exp1", *asked
    )
    assert {f"process {rank} of 2" for rank in (0, 1)} == {
        line[:14] for line in said.splitlines() if "of 2" in line
    }
    _command("dse_monitor", "watch", real_run / "exp2", *asked, "--once", "--plain", "--settle-seconds", 0)
    views = [ledger.read(real_run / name / "dse") for name in ("exp1", "exp2")]
    ours, theirs = ([(e.source.path, e.components, e.settings) for e in view.evaluations] for view in views)
    assert len(ours) == 5
    assert ours == theirs
    best = [
        json.loads((real_run / name / "dse" / "best.json").read_text())["best"] for name in ("exp1", "exp2")
    ]
    assert best[0]["path"] == best[1]["path"]
    assert events.published(real_run / "exp1" / "dse").evaluations == {e.seq for e in views[0].evaluations}
    assert not (real_run / "exp1" / "dse" / shards.FOLDER).exists()
    again = _command("dse_monitor", "score", real_run / "exp1", *asked)  # one process, nothing left to do
    assert "5 already scored" in again


def test_nothing_of_it_needs_watchdog(tmp_path):
    """GPU images may lack it; a watcher without it looks now and then."""
    run = make_run(tmp_path / "exp1")
    program = f"""
import sys
sys.modules["watchdog"] = None
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1] / "helpers")!r}]
from pathlib import Path
from watch_fakes import FakeClock, FakeWorker, Watching
from test_ranks import _score
assert _score(Path({str(run)!r})) == 0
with Watching(FakeClock(), Path({str(run)!r}), poll_seconds=None) as watch:
    watch.step(20)
assert any("watchdog is not installed" in line for line in watch.console.lines), watch.console.lines
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
