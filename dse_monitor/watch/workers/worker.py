"""The process that evaluates a burst of checkpoints and ends; `-m dse_monitor.watch.workers.worker JSON`.

It holds what is heavy (torch, a CUDA context), so the watcher does not; whatever a checkpoint does to it, the
watcher lives on. Both speak JSON, one object per line. The watcher writes jobs:

    {"job": 3, "path": "/runs/a/c9.pth", "name": "c9.pth", "stamp": [...], "config": {...}, "place": {...}}

or, while a whole file lies still, what it will be measured with; there is no answer to that:

    {"prepare": {"config": {...}, "place": {...}}, "images": {"image_size": [224, 224], ...}}

and gets for each job any number of `progress` and one final answer:

    {"job": 3, "device": "cuda:0   41 GB free"}              where it will be evaluated
    {"job": 3, "progress": ["forward", 256, 2048]}
    {"job": 3, "warning": "the layout 'x' of ..."}           what was logged meanwhile, of a plugin say
    {"job": 3, "evaluation": {...}, "stamp": [...]}          done, for this version of the file
    {"job": 3, "changed": true}                              the file is another than the one that was meant
    {"job": 3, "gone": true}                                 the file is not there any more
    {"job": 3, "busy": "cuda:0 has 1.2 GB free, ..."}        no room now; try later
    {"job": 3, "error": "ImagesError", "reason": "..."}      not the checkpoint's fault

The process ends when its input ends, which is also what happens when the watcher dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from dse_monitor.errors import DeviceError, DSEError, one_line
from dse_monitor.evaluation.config import EvaluationConfig, Placement
from dse_monitor.preprocessing import Preprocessing
from dse_monitor.runs.identity import Stamp, look
from dse_monitor.runs.record import Evaluation, to_json
from dse_monitor.watch.workers import gpu, imports

if TYPE_CHECKING:
    from dse_monitor.evaluation.evaluator import Evaluator, HeldOut

Progress = Callable[[str, int, int], None]
PROGRESS_SECONDS = 0.1  # between two words about progress
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # PyTorch asks the kernel for pages of 2 MiB


class Evaluate(Protocol):
    """Measures checkpoints on one device; see evaluation.evaluator."""

    @property
    def words(self) -> str:
        """The device and the precision, for people; empty if there is nothing to say."""
        ...

    def __call__(
        self, path: Path, progress: Progress | None = None, *, name: str | None = None
    ) -> Evaluation:
        """Measure the checkpoint at ``path``, recorded as ``name``."""
        ...

    def wake(self) -> None:
        """Get the device ready before the first checkpoint."""
        ...


class MakeEvaluator(Protocol):
    """Makes what measures checkpoints; see :class:`EvaluatorFactory`."""

    def __call__(self, config: EvaluationConfig, place: Placement) -> Evaluate:
        """What measures checkpoints; raises NoRoom if there is none on the device."""
        ...

    def look_at_images(self, config: EvaluationConfig, place: Placement, how: Preprocessing) -> None:
        """Make sure of the images that are measured next."""
        ...


@dataclass(frozen=True, kw_only=True)
class WorkerLimits:
    """What a worker may take from the training beside it.

    Attributes:
        nice: added to the process's niceness.
        threads: threads of torch on the CPU.
        gpu_share: share of the time that the device may compute for the worker, in (0, 1].
        cpu_fallback: use the CPU rather than wait for room on a GPU.
    """

    nice: int = 10
    threads: int = 1
    gpu_share: float = 1.0
    cpu_fallback: bool = False

    @classmethod
    def default(cls, **changes: Any) -> WorkerLimits:
        """A quarter of the cores, at most four threads; chosen by us."""
        return cls(**{"threads": max(1, min(4, (os.cpu_count() or 1) // 4)), **changes})

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON types."""
        return asdict(self)

    def environment(self) -> dict[str, str]:
        """Variables that numeric libraries read when they are loaded.

        Large pages under large tensors make a forward pass on a CPU 7 % shorter; who forbids them is obeyed.
        """
        threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        large_pages = os.environ.get(LARGE_PAGES, "1")
        return {**dict.fromkeys(threads, str(self.threads)), LARGE_PAGES: large_pages}


def main(make_evaluator: MakeEvaluator | None = None) -> int:
    """Serve jobs from standard input until it ends.

    Args:
        make_evaluator: makes what measures; the real one if None.
    """
    limits = WorkerLimits(**json.loads(sys.argv[1])) if len(sys.argv) > 1 else WorkerLimits.default()
    die_with_parent()
    # Ctrl-C, and SIGTERM of SLURM or systemd, reach every process at once. The watcher decides: a worker that
    # ended by itself would look as if the checkpoint had killed it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(limits.nice)
    # Whatever a library prints must not get among our lines.
    output = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    serve(sys.stdin, output, make_evaluator or EvaluatorFactory(limits), limits)
    return 0


def serve(
    jobs: IO[str],
    answers: IO[str],
    make_evaluator: MakeEvaluator,
    limits: WorkerLimits,
    *,
    leave: Callable[[int], Any] = os._exit,
) -> None:
    """Answer every job on ``jobs``; ``leave`` is called when the other side is gone in the middle of one."""
    waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    busy = threading.Event()

    def receive() -> None:
        for line in jobs:
            waiting.put(line)
        waiting.put(None)
        if busy.is_set():  # nobody waits for the result any more
            leave(0)

    threading.Thread(target=receive, name="jobs", daemon=True).start()

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    evaluators = _Evaluators(make_evaluator)
    with _Logged() as logged:
        while (line := waiting.get()) is not None:
            busy.set()
            job = json.loads(line)
            if "prepare" in job:
                evaluators.prepare(*_asked(job["prepare"]), job["images"])
            else:
                answer = _answer(job, evaluators, say, limits)
                for text in logged.take():
                    say({"job": job["job"], "warning": text})
                say({"job": job["job"], **answer})
            busy.clear()


class _Logged(logging.Handler):
    """Keeps the warnings of this project, which a worker's own output would show to nobody."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self._texts[record.getMessage()] = None

    def take(self) -> list[str]:
        """What was logged since the last call."""
        texts, self._texts = self._texts, {}
        return list(texts)

    def __enter__(self) -> _Logged:
        logging.getLogger("dse_monitor").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("dse_monitor").removeHandler(self)


def _asked(order: dict[str, Any]) -> tuple[EvaluationConfig, Placement]:
    return EvaluationConfig.from_json(order["config"]), Placement.from_json(order["place"])


class _Evaluators:
    """Keeps the last evaluator, with its images and device."""

    def __init__(self, make: MakeEvaluator):
        self._make = make
        self._key: tuple[EvaluationConfig, Placement] | None = None
        self._last: Evaluate | None = None

    def get(self, config: EvaluationConfig, place: Placement) -> Evaluate:
        if self._last is None or self._key != (config, place):
            self._last = None
            self._last, self._key = self._make(config, place), (config, place)
        return self._last

    def prepare(self, config: EvaluationConfig, place: Placement, how: dict[str, Any] | None) -> None:
        """Get ready for checkpoints: what goes wrong goes wrong again, with a job to answer."""
        if how is not None:
            with contextlib.suppress(Exception):
                self._make.look_at_images(config, place, Preprocessing.from_json(how))
        with contextlib.suppress(Exception):
            self.get(config, place).wake()


class NoRoom(DeviceError):
    """There is no room on the device now."""


def _answer(
    job: dict[str, Any], evaluators: _Evaluators, say: Callable[[dict[str, Any]], None], limits: WorkerLimits
) -> dict[str, Any]:
    path, wanted = Path(job["path"]), Stamp.from_list(job["stamp"])
    try:
        found = look(path)
        if not found.same_version(wanted):
            return {"changed": True}
        evaluate = evaluators.get(*_asked(job))
        if evaluate.words:
            say({"job": job["job"], "device": evaluate.words})
        progress = _Reporter(job["job"], say, limits.gpu_share)
        evaluation = evaluate(path, progress, name=job["name"])
        drop_from_cache(path)
        return {"evaluation": to_json(evaluation), "stamp": found.to_list()}
    except NoRoom as error:
        return {"busy": str(error)}
    except DSEError as error:
        return {"error": type(error).__name__, "reason": one_line(error)}
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            return {"gone": True}
        return {
            "error": type(error).__name__,
            "reason": f"{error.filename or path}: {error.strerror or error}",
        }


class _Reporter:
    """Passes progress on, not too often; rests between micro-batches to keep to a share of the time."""

    def __init__(
        self,
        job: int,
        say: Callable[[dict[str, Any]], None],
        share: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._job, self._say, self._share, self._clock, self._sleep = job, say, share, clock, sleep
        self._said = -PROGRESS_SECONDS
        self._stage = ""
        self._since = clock()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = self._clock()
        if stage == "forward" and self._stage == "forward" and self._share < 1:
            self._sleep((now - self._since) * (1 - self._share) / self._share)
        if stage != self._stage or done == total or now - self._said >= PROGRESS_SECONDS:
            self._said = now
            self._say({"job": self._job, "progress": [stage, done, total]})
        self._stage, self._since = stage, self._clock()


class EvaluatorFactory:
    """Makes evaluators, once there is room on the device.

    Torch loads from the start, in the background: meanwhile the images can be looked at.
    """

    def __init__(self, limits: WorkerLimits):
        from concurrent.futures import ThreadPoolExecutor

        from dse_monitor.evaluation import (
            evaluator as evaluate,  # first, so that no two threads import the same modules
        )

        self._limits, self._evaluate = limits, evaluate
        self._loading = ThreadPoolExecutor(1).submit(imports.load)
        self._held_out: tuple[EvaluationConfig, Placement, HeldOut] | None = None

    def look_at_images(self, config: EvaluationConfig, place: Placement, how: Preprocessing) -> None:
        """Make sure of the images that are measured next; no torch is needed for that.

        Raises:
            ImagesError, OutputError: see `images.prepare`.
        """
        if config.network is not None:  # which may have a transform of its own
            return
        held_out = self._evaluate.HeldOut(config, place.cache)
        held_out.at(how)
        self._held_out = (config, place, held_out)

    def __call__(self, config: EvaluationConfig, place: Placement) -> Evaluate:
        """What measures checkpoints.

        Raises:
            NoRoom: there is none on the device.
        """
        self._loading.result()
        import torch

        torch.set_num_threads(self._limits.threads)
        seen = gpu.gpus() if torch.version.cuda is not None else None
        chosen = gpu.place(place.device, seen, cpu_fallback=self._limits.cpu_fallback)
        if not chosen.device:
            raise NoRoom(chosen.words)
        known = None
        if self._held_out is not None and self._held_out[:2] == (config, place):
            known = self._held_out[2]
        placed = dataclasses.replace(place, device=chosen.device)
        evaluator = self._evaluate.Evaluator(config, placed, held_out=known)
        found = f"{evaluator.device}{chosen.words.removeprefix(chosen.device)}"
        return _Placed(evaluator, f"{found}, {evaluator.precision}")


@dataclass(frozen=True)
class _Placed:
    evaluator: Evaluator
    words: str

    def __call__(
        self, path: Path, progress: Progress | None = None, *, name: str | None = None
    ) -> Evaluation:
        return self.evaluator(path, progress, name=name)

    def wake(self) -> None:
        self.evaluator.wake()


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent dies (Linux); elsewhere the end of input does it."""
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died just before we asked
        os._exit(0)


def drop_from_cache(path: Path) -> None:
    """Give back the page cache that reading a checkpoint took from the training."""
    for file in _files(path):
        with contextlib.suppress(OSError, AttributeError):
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (file for file in path.rglob("*") if file.is_file())
    else:
        yield path


if __name__ == "__main__":
    sys.exit(main())
