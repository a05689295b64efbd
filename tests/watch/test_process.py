"""Real processes: the worker's protocol, how it dies, and how the supervisor ends."""

import dataclasses
import io
import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from preprocessings import rgb
from watch_fakes import FakeEvaluate, FakeFactory, write_checkpoint

from dse_monitor import scenes
from dse_monitor.errors import ImagesError
from dse_monitor.evaluation.config import EvaluationConfig, Placement
from dse_monitor.runs import ledger
from dse_monitor.runs.identity import look
from dse_monitor.watch.workers import gpu
from dse_monitor.watch.workers.child import EndKind, WorkerEnd, WorkerProcess, command
from dse_monitor.watch.workers.gpu import Gpu, Place
from dse_monitor.watch.workers.worker import LARGE_PAGES, EvaluatorFactory, WorkerLimits, _Reporter, serve

PROGRAM = str(Path(__file__).with_name("process.py"))
TESTS = Path(__file__).parents[1]


def _asked(**changes):
    """What is measured, as a worker is told."""
    config = EvaluationConfig(images="i", **changes)
    return {"config": config.to_json(), "place": Placement(cache="c").to_json()}


def _job(path, number=1, **changes):
    return {
        "job": number,
        "path": str(path),
        "name": path.name,
        "stamp": look(path).to_list(),
        **_asked(**changes),
    }


def _serve(*jobs, evaluate=FakeEvaluate):
    answers = io.StringIO()
    serve(
        io.StringIO("".join(json.dumps(job) + "\n" for job in jobs)),
        answers,
        FakeFactory(evaluate),
        WorkerLimits(),
        leave=lambda code: 0,
    )
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def _wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_worker_says_device_progress_and_evaluation(tmp_path):
    path = write_checkpoint(tmp_path / "c.pth", epoch=3.0)
    device, progress, final = _serve(_job(path))
    assert device == {"job": 1, "device": "cpu, float32"}
    assert progress == {"job": 1, "progress": ["read", 0, 1]}
    assert final["evaluation"]["source"]["epoch"] == 3.0
    assert final["stamp"] == look(path).to_list()


def test_worker_passes_on_what_is_logged_while_it_measures(tmp_path):
    """A plugin that cannot be used, for one: what a worker prints itself nobody sees."""

    class Grumbling(FakeEvaluate):
        def __call__(self, *arguments, **options):
            logging.getLogger("dse_monitor.plugins").warning("the layout %r cannot be used", "x")
            logging.getLogger("somebody.else").warning("is not ours to pass on")
            return super().__call__(*arguments, **options)

    path = write_checkpoint(tmp_path / "c.pth")
    answers = _serve(_job(path), _job(path, 2), evaluate=Grumbling)
    assert [(a["job"], a["warning"]) for a in answers if "warning" in a] == [
        (1, "the layout 'x' cannot be used"),
        (2, "the layout 'x' cannot be used"),
    ]
    assert "evaluation" in answers[-1]
    assert logging.getLogger("dse_monitor").handlers == []


def test_worker_refuses_another_version_and_a_missing_file(tmp_path):
    path = write_checkpoint(tmp_path / "c.pth")
    old = _job(path)
    path.write_text("another")
    assert _serve(old) == [{"job": 1, "changed": True}]
    path.unlink()
    assert _serve(old) == [{"job": 1, "gone": True}]


def test_worker_passes_on_what_is_not_the_checkpoints_fault(tmp_path):
    def no_images(config, place):
        raise ImagesError("no images in /data;\n give another folder")

    path = write_checkpoint(tmp_path / "c.pth")
    (answer,) = _serve(_job(path), evaluate=no_images)
    assert answer == {"job": 1, "error": "ImagesError", "reason": "no images in /data; give another folder"}


def test_evaluator_is_kept_as_long_as_the_config_is_the_same(tmp_path):
    made = []

    def make(config, place):
        made.append(config.seed)
        return FakeEvaluate(config, place)

    path = write_checkpoint(tmp_path / "c.pth")
    _serve(_job(path), _job(path, 2), _job(path, 3, seed=1), evaluate=make)
    assert made == [0, 1]


def test_worker_gets_ready_with_what_will_measure(tmp_path):
    happened = []

    class Ready(FakeEvaluate):
        def wake(self):
            happened.append(("wake", self.config.seed))

        def __call__(self, *arguments, **options):
            happened.append(("measure", self.config.seed))
            return super().__call__(*arguments, **options)

    made = []

    def make(config, place):
        made.append(config.seed)
        return Ready(config, place)

    path = write_checkpoint(tmp_path / "c.pth")
    answers = _serve(
        {"prepare": _asked(seed=1), "images": rgb(96).to_json()}, _job(path, seed=1), evaluate=make
    )
    assert happened == [("wake", 1), ("measure", 1)]
    assert made == [1]
    assert "evaluation" in answers[-1]


def test_images_looked_at_while_torch_loads_are_those_that_are_measured(tmp_path):
    pictures = scenes.write_folder(tmp_path / "pictures", 16, size=40)
    config = EvaluationConfig(images=pictures, num_images=16)
    place = Placement(cache=str(tmp_path / "cache"), device="cpu")
    make = EvaluatorFactory(WorkerLimits())
    make.look_at_images(config, place, rgb(32))
    seen = make._held_out[2].at(rgb(32))
    assert make(config, place).evaluator.image_set(rgb(32)) is seen
    assert make(dataclasses.replace(config, seed=1), place).evaluator.image_set(rgb(32)) is not seen


def test_what_fails_while_getting_ready_is_answered_with_a_job(tmp_path):
    def no_images(config, place):
        raise ImagesError("no images in /data")

    path = write_checkpoint(tmp_path / "c.pth")
    answers = _serve({"prepare": _asked(), "images": rgb(96).to_json()}, _job(path), evaluate=no_images)
    assert answers == [{"job": 1, "error": "ImagesError", "reason": "no images in /data"}]


def test_a_share_of_the_gpu_is_kept_by_resting_between_micro_batches(fake_clock):
    said, rested = [], []

    def sleep(seconds):
        rested.append(seconds)
        fake_clock.sleep(seconds)

    report = _Reporter(1, said.append, 0.25, clock=fake_clock.monotonic, sleep=sleep)
    for done in range(5):
        fake_clock.sleep(0.4)
        report("forward", done, 4)
    assert rested == pytest.approx([1.2] * 4)
    assert [message["progress"][1] for message in said] == [0, 1, 2, 3, 4]


def test_stray_output_of_a_library_stays_out_of_the_protocol(tmp_path):
    code = (
        "import os, sys; from dse_monitor.watch.workers import worker\n"
        "from watch_fakes import FakeEvaluate, FakeFactory\n"
        "def make(*asked):\n    print('hello'); os.write(1, b'world\\n'); return FakeEvaluate(*asked)\n"
        "worker.main(FakeFactory(make))"
    )
    path = write_checkpoint(tmp_path / "c.pth", epoch=1.0)
    worker = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": f"{Path(PROGRAM).parents[1] / 'helpers'}:{Path(PROGRAM).parents[2]}",
        },
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(json.dumps(_job(path)) + "\n")
    worker.stdin.flush()
    lines = [worker.stdout.readline() for _ in range(3)]
    assert "evaluation" in json.loads(lines[-1])
    rest, stray = worker.communicate(timeout=20)
    assert rest == ""
    assert "hello" in stray
    assert "world" in stray


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_death_of_a_real_worker_is_noticed_and_named(tmp_path, number):
    path = write_checkpoint(tmp_path / "c.pth", epoch=1.0, die=int(number))
    worker = WorkerProcess([sys.executable, PROGRAM, "worker"])
    worker.send(_job(path))
    _wait_until(lambda: worker.ended() is not None)
    end = worker.ended()
    assert end is not None
    assert end.kind is EndKind.SIGNAL
    assert number.name in end.words
    worker.stop()
    worker.send(_job(path))  # a dead worker takes jobs silently


def _end_after_answering(path):
    """How a real worker ended after it has measured one checkpoint."""
    worker = WorkerProcess([sys.executable, PROGRAM, "worker"])
    worker.send(_job(path))
    answers = []
    _wait_until(lambda: answers.extend(worker.receive()) or any("evaluation" in answer for answer in answers))
    worker.stop()
    return worker.ended()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_meant_for_the_watcher_does_not_end_its_worker(tmp_path, number):
    path = write_checkpoint(tmp_path / "c.pth", epoch=1.0, die=int(number))
    assert _end_after_answering(path) == WorkerEnd(EndKind.EXIT, "the worker ended with code 0")


def test_worker_answers_through_pipes_and_ends_with_its_input(tmp_path):
    path = write_checkpoint(tmp_path / "c.pth", epoch=1.0)
    assert _end_after_answering(path) == WorkerEnd(EndKind.EXIT, "the worker ended with code 0")


def test_worker_that_writes_without_end_is_ended_and_its_end_named(tmp_path, monkeypatch):
    monkeypatch.setattr("dse_monitor.watch.workers.child.ANSWER_LIMIT", 1000)
    noise = "import sys, time; sys.stdout.write('x' * 2000); sys.stdout.flush(); time.sleep(60)"
    worker = WorkerProcess([sys.executable, "-c", noise])
    _wait_until(lambda: worker.receive() or worker.ended() is not None)
    end = worker.ended()
    assert end is not None
    assert end.kind is EndKind.BROKEN_PROTOCOL
    assert "1,000 bytes" in end.words
    select.select(worker.descriptors(), [], [], 20.0)  # its streams can be slept on until it is stopped
    assert worker.receive() == []
    worker.stop()
    _wait_until(lambda: _state(worker.pid) in "Z?")


def test_worker_dies_with_its_parent(tmp_path):
    path = write_checkpoint(tmp_path / "c.pth", epoch=1.0, die=int(signal.SIGSTOP))
    code = (
        "import sys, json, time; from dse_monitor.watch.workers.child import WorkerProcess\n"
        f"w = WorkerProcess([sys.executable, {PROGRAM!r}, 'worker']); w.send(json.loads(sys.argv[1]))\n"
        "print(w.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(_job(path))], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    _wait_until(lambda: _state(pid) in "TZ?")  # it stopped itself in the middle of a job
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _wait_until(lambda: _state(pid) in "Z?")


def _state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "?"


def test_exit_codes_are_told_in_words():
    failed = WorkerEnd.of_process(1, b"Traceback\nValueError: bad\n")
    assert failed == WorkerEnd(EndKind.EXIT, "the worker ended with code 1: ValueError: bad")
    killed = WorkerEnd.of_process(-9, b"")
    assert killed == WorkerEnd(EndKind.SIGNAL, "the worker was ended by SIGKILL (out of memory?)")
    assert WorkerEnd.of_process(-200, b"").words == "the worker was ended by signal 200"


def test_worker_command_carries_its_limits():
    *program, limits = command(WorkerLimits(threads=3, gpu_share=0.5))
    assert program == [sys.executable, "-m", "dse_monitor.watch.workers.worker"]
    assert json.loads(limits)["gpu_share"] == 0.5
    assert WorkerLimits(threads=3).environment()["OMP_NUM_THREADS"] == "3"
    assert WorkerLimits.default(nice=5).threads >= 1


@pytest.mark.parametrize(("outside", "inside"), [(None, "1"), ("0", "0")])
def test_large_pages_are_asked_for_unless_forbidden_outside(monkeypatch, outside, inside):
    monkeypatch.delenv(LARGE_PAGES, raising=False)
    if outside is not None:
        monkeypatch.setenv(LARGE_PAGES, outside)
    assert WorkerLimits().environment()[LARGE_PAGES] == inside


def _start(run, *options):
    return subprocess.Popen(
        [sys.executable, PROGRAM, "watch", str(run), *options], stdout=subprocess.PIPE, text=True
    )


def _scored(run):
    try:
        return [e.source.path for e in ledger.read(run / "dse").evaluations]
    except Exception:
        return []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_supervisor_ends_cleanly_when_asked_while_a_worker_hangs(tmp_path, number):
    run = tmp_path / "exp1"
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0, value=1)
    watcher = _start(run)
    _wait_until(lambda: len(_scored(run)) == 1)
    write_checkpoint(run / "checkpoint0001.pth", epoch=2.0, value=2, die=int(signal.SIGSTOP))
    beat = run / "dse" / "watcher.json"
    _wait_until(lambda: "checkpoint0001.pth" in beat.read_text(), seconds=30)
    watcher.send_signal(number)
    output, _ = watcher.communicate(timeout=5)
    assert watcher.returncode == 0
    assert re.search(r"^ +1 ", output, re.MULTILINE)  # the row of epoch 1
    assert json.loads(beat.read_text())["state"] == "ended"
    assert _scored(run) == ["checkpoint0000.pth"]


def test_supervisor_killed_again_and_again_scores_each_checkpoint_once(tmp_path):
    run = tmp_path / "exp1"
    for number in range(6):
        write_checkpoint(run / f"checkpoint{number:04d}.pth", epoch=number + 1.0, value=number)
    kills = 0
    while len(_scored(run)) < 6:
        before = len(_scored(run))
        watcher = _start(run)
        _wait_until(lambda before=before: len(_scored(run)) > before)
        watcher.kill()
        watcher.communicate()
        kills += 1
    done = _start(run, "once=true")
    done.communicate(timeout=30)
    assert done.returncode == 0
    assert kills >= 1
    assert sorted(_scored(run)) == [f"checkpoint{number:04d}.pth" for number in range(6)]


def test_supervisor_is_small_and_knows_no_torch(tmp_path):
    code = (
        "import sys; from dse_monitor.watch.monitor import watch\n"
        "from dse_monitor.watch.dependencies import Dependencies\n"
        "Dependencies.real()\n"
        "assert 'torch' not in sys.modules\n"
        "pages = int(open('/proc/self/statm').read().split()[1]); print(pages * 4096 / 2**20)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 60


def test_events_make_a_new_checkpoint_known_before_the_next_scan(tmp_path):
    from dse_monitor.watch.files.hints import Hints

    (tmp_path / "sub").mkdir()
    woken = threading.Event()
    hints = Hints(tmp_path, woken.set, ignore=tmp_path / "dse")
    hints.start()
    try:
        (tmp_path / "sub" / "a.pth").write_text("x")
        assert woken.wait(10)
        assert "sub/a.pth" in (hints.take() or set())
        (tmp_path / "b.tmp").write_text("x")
        (tmp_path / "b.tmp").rename(tmp_path / "b.pth")
        seen = set()
        _wait_until(lambda: seen.update(hints.take() or set()) or "b.pth" in seen)
    finally:
        hints.stop()


GPUS = """0, GPU-aaa, 70000, 81920, Default
1, GPU-bbb, 3000, 81920, Default
2, GPU-ccc, 80000, 81920, Exclusive_Process
3, GPU-ddd, [N/A], [N/A], Default
"""
APPS = "GPU-aaa, 11\nGPU-bbb, 12\nGPU-ccc, 13\n"


def _ask(*arguments):
    return APPS if "compute-apps" in arguments[0] else GPUS


def test_gpus_are_numbered_as_torch_sees_them():
    assert [g.index for g in gpu.gpus(_ask, visible="") or []] == []
    assert [(g.index, g.free_mib) for g in gpu.gpus(_ask, visible="1,0") or []] == [(0, 3000), (1, 70000)]
    assert [g.free_mib for g in gpu.gpus(_ask, visible="GPU-ccc") or []] == [80000]
    assert gpu.gpus(lambda *_: None) is None


@pytest.mark.parametrize(
    ("device", "gpus", "fallback", "expected"),
    [
        ("cpu", [Gpu(0, 1, 80000)], False, "cpu"),
        ("auto", None, False, "auto"),
        ("auto", [], False, "auto"),
        ("auto", [Gpu(0, 70000, 80000, guests=1), Gpu(1, 60000, 80000)], False, "cuda:1"),
        ("auto", [Gpu(0, 70000, 80000, guests=1), Gpu(1, 60000, 80000, guests=1)], False, "cuda:0"),
        ("auto", [Gpu(0, 9000, 80000, guests=1)], False, ""),
        ("auto", [Gpu(0, 9000, 80000, guests=1)], True, "cpu"),
        ("cuda:0", [Gpu(0, 9000, 80000)], False, "cuda:0"),
        ("cuda", [Gpu(0, 79000, 80000, guests=1, exclusive=True)], False, ""),
        ("cuda:7", [Gpu(0, 79000, 80000)], False, "cuda:7"),
    ],
)
def test_evaluation_goes_where_there_is_room_beside_the_training(device, gpus, fallback, expected):
    chosen = gpu.place(device, gpus, cpu_fallback=fallback)
    assert isinstance(chosen, Place)
    assert chosen.device == expected
    assert chosen.words


@pytest.mark.skipif(sys.version_info < (3, 11), reason="python -P is new in 3.11")
def test_files_of_the_current_folder_are_not_taken_for_modules(tmp_path):
    (tmp_path / "selectors.py").write_text("raise SystemExit('the file in the current folder was loaded')")
    command = [sys.executable, "-P", "-m", "dse_monitor", "watch", "missing", "--images", ".", "--once"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "dse-monitor: missing does not exist; give the folder of a run\n"
