"""What the tests of the watcher share: a clock that moves when told, files without torch, workers without a
network."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import zipfile
from dataclasses import dataclass

from dse_monitor.evaluation.config import EvaluationConfig
from dse_monitor.facts import Fact
from dse_monitor.metric.components import Components
from dse_monitor.runs.record import Evaluation, Settings, Source
from dse_monitor.watch.console import Console
from dse_monitor.watch.monitor import Monitor
from dse_monitor.watch.options import WatchOptions
from dse_monitor.watch.workers.worker import WorkerLimits, _answer, _Evaluators


@dataclass
class FakeClock:
    """Monotonic and wall clock in one; ``sleep`` moves both."""

    now: float = 1000.0
    wall: float = 1_700_000_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.wall

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds


SETTINGS = Settings(images="f" * 12, num_images=64)


def make_evaluation(path="checkpoint0009.pth", *, status="scored", content=None, settings=SETTINGS, **facts):
    """An evaluation whose numbers follow from the epoch, so that equal files give equal scores."""
    epoch = facts.pop("epoch", 10.0)
    m_inter = facts.pop("m_inter", 1.0 - 0.001 * (epoch or 0))
    components = Components(
        m_inter=m_inter,
        m_intra_image=0.5,
        m_intra_batch=0.7,
        m_dim=0.6,
        separability_se=0.004,
        m_dim_se=0.001,
        separability_dim_cov=0.0,
        images=64,
        tokens=196,
        width=384,
    )
    source = Source(
        path=path,
        content=content if content is not None else f"content-of-{path}",
        epoch=epoch,
        epoch_source="field epoch",
        step=facts.pop("step", None),
        layout="dino",
        encoder="teacher",
        arch="vit 384x12, 6 heads, patch 16",
    )
    return Evaluation(
        status=status,
        source=source,
        settings=settings,
        components=components if status == "scored" else None,
        reason=facts.pop("reason", "" if status == "scored" else "no encoder found; give --layout"),
        error=facts.pop("error", "" if status == "scored" else "UnknownLayout"),
        seconds={"total": 6.0},
        **facts,
    )


def write_checkpoint(path, epoch=None, value=0.0, **extra):
    """A real torch file of a few kilobytes, written without torch: a zip with true checksums."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        stem = path.name.split(".")[0]
        archive.writestr(f"{stem}/data.pkl", json.dumps({"epoch": epoch, **extra}))
        archive.writestr(f"{stem}/version", "3\n")
        archive.writestr(f"{stem}/data/0", repr(value) * 4000)
    return path


def read_fake(path):
    """What :func:`write_checkpoint` put into a file."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        content = hashlib.sha256(archive.read(name.replace("data.pkl", "data/0"))).hexdigest()
        return json.loads(archive.read(name)), content


class FakeEvaluate:
    """Measures what :func:`write_checkpoint` wrote; the numbers follow from epoch and value."""

    def __init__(self, config, place=None):
        self.config = config
        self.words = "cpu, float32"

    def __call__(self, path, progress=None, *, name=None):
        if progress is not None:
            progress("read", 0, 1)
        try:
            facts, content = read_fake(path)
        except (OSError, zipfile.BadZipFile, StopIteration, ValueError) as error:
            return make_evaluation(
                name, status="failed", reason=f"{name}: {error}", error="CorruptCheckpoint"
            )
        if facts.get("die"):
            os.kill(os.getpid(), facts["die"])
        if facts.get("invalid"):
            return make_evaluation(
                name, status="invalid", epoch=facts["epoch"], content=content, reason="NaN", error="x"
            )
        seed = self.config.seed
        settings = Settings(images="f" * 12, num_images=64, seed=seed)
        if "mean" in facts:  # the file says how its images are normalised
            settings = dataclasses.replace(settings, mean=tuple(facts["mean"]))
        score = {"m_inter": facts["m_inter"]} if "m_inter" in facts else {}
        score["step"] = facts.get("step")
        made = make_evaluation(name, epoch=facts["epoch"], content=content, settings=settings, **score)
        known = tuple(Fact(name, "x", "y", assumed=True) for name in facts.get("assumed", ()))
        return dataclasses.replace(made, settings=dataclasses.replace(settings, facts=known))

    def wake(self):
        pass


class FakeFactory:
    """Makes evaluators from a function of config and place; images need no look."""

    def __init__(self, make=FakeEvaluate):
        self._make = make

    def __call__(self, config, place):
        return self._make(config, place)

    def look_at_images(self, config, place, how):
        pass


class FakeWorker:
    """A worker in this process: answers as soon as it is asked."""

    def __init__(self):
        self.jobs, self.orders, self.answers, self.stopped = [], [], [], False
        self._evaluators = _Evaluators(FakeFactory())

    def send(self, job):
        self.jobs.append(job)
        answer = _answer(job, self._evaluators, self.answers.append, WorkerLimits())
        self.answers.append({"job": job["job"], **answer})

    def prepare(self, order):
        self.orders.append(order)

    def receive(self):
        answers, self.answers = self.answers, []
        return answers

    def descriptors(self):
        return []

    def ended(self):
        return None

    def stop(self, *, kill=False):
        self.stopped = True


class Recorder(Console):
    """A console that remembers what it was told, and how that looks."""

    def __init__(self, **options):
        self.text = io.StringIO()
        self.said = []
        super().__init__(self.text, "plain", **options)

    def header(self, line):
        self.said.append(line)
        super().header(line)

    def row(self, row):
        self.said.append(row)
        super().row(row)

    def problem(self, problem):
        self.said.append(problem)
        super().problem(problem)

    def notice(self, notice):
        self.said.append(notice)
        super().notice(notice)

    def of(self, kind):
        return [item for item in self.said if isinstance(item, kind)]

    @property
    def lines(self):
        return self.text.getvalue().splitlines()


class Watching:
    """A monitor under a fake clock: time passes only while it sleeps."""

    def __init__(self, clock, *runs, worker=FakeWorker, dependencies=None, console=None, **options):
        self.clock = clock
        self.console = console or Recorder(several=len(runs) > 1)
        self.workers = []

        def make_worker():
            self.workers.append(worker())
            return self.workers[-1]

        options = {
            "settle_seconds": 2.0,
            "poll_seconds": 1.0,
            "maps": False,
            "config": EvaluationConfig(images="i"),
            **options,
        }
        self.monitor = Monitor(
            WatchOptions(runs=tuple(runs), **options),
            self.console,
            dependencies=dependencies,
            make_worker=make_worker,
            clock=clock,
            sleep=lambda descriptors, timeout: clock.sleep(max(timeout, 0.01)),
        )

    def run(self):
        return self.monitor.run()

    def step(self, seconds=0.0):
        """Let this much time pass, doing everything that falls due."""
        end = self.clock.now + seconds
        while True:
            timeout = self.monitor.step()
            if timeout is None or self.clock.now >= end:
                return timeout
            self.clock.sleep(min(max(timeout, 0.01), end - self.clock.now))

    @property
    def jobs(self):
        """Names handed to workers, in order."""
        return [job["name"] for worker in self.workers for job in worker.jobs]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.monitor.close()
