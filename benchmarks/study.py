"""Does DSE tell the truth? Sixteen trained runs, each checkpoint measured by DSE and by probes with labels.

Every run goes through the product itself: our trainers write checkpoints, ``dse-monitor watch --once`` scores
them on held-out scenes without labels, `dse_monitor.probe.prober` measures linear and nearest-neighbour mIoU
on other scenes with labels. One small CSV file per run comes out, a line for each checkpoint; tables and
figures are made of those files by ``study_tables.py``.

    python benchmarks/study.py [--runs dino,mae] [--shard 0/2] [--setting cpu] [--out runs/study]

Whatever is done is kept: a call that was interrupted goes on where it stopped, and ``--shard I/N`` (several
machines, or one process per core) takes every N-th run. ``--setting large`` is meant for a GPU.
"""

from __future__ import annotations

import csv
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dse_monitor.preprocessing import pair
from dse_monitor.probe.prober import ProbeConfig, Prober, ProbeResult
from dse_monitor.runs import ledger
from dse_monitor.runs.record import OUTPUT_FOLDER, Evaluation
from dse_monitor.scenes import write_folder

RESULTS = Path(__file__).resolve().parent / "results" / "study"
TRAIN_SEED, HELD_OUT_SEED, LABELLED_SEED = 0, 1, 2  # of the scenes; no scene is in two sets
PARTS = ("m_inter", "m_intra_image", "m_intra_batch", "m_dim", "m_dim_se", "separability_se")
COMPANIONS = ("rankme_dense", "rankme_pooled", "alpha_req_dense", "alpha_req_pooled")
PROBES = ("miou_linear", "miou_linear_std", "accuracy_linear", "miou_knn", "miou_knn_std")
COLUMNS = ("run", "epoch", "loss", *PARTS, "separability_dim_cov", *COMPANIONS, *PROBES)


class Failed(Exception):
    """One of our programs ended with an error; its log says which."""


@dataclass(frozen=True)
class Setting:
    """How large the study is.

    Attributes:
        scenes: scenes to train on: few, so that long training can overdo it.
        epochs: length of each run.
        save_every: epochs between checkpoints.
        size: side of the scenes, px.
        held_out: scenes without labels that DSE is measured on.
        labelled: scenes with labels for the probes, split in halves twice.
        backbone: for methods that take a ViT; None for the method's own.
        flags: for every run.
        taught: start from a network trained with labels (``study_starts.py``) in place of random weights; the
            start is the checkpoint of epoch 0.
        longest: limit of `Run.longer`.
    """

    scenes: int
    epochs: int
    save_every: int
    size: int
    held_out: int
    labelled: int
    backbone: str | None
    flags: tuple[str, ...]
    taught: bool = False
    longest: int = 4

    @property
    def checkpoints(self) -> int:
        """Of each run."""
        return self.epochs // self.save_every + self.taught

    def every(self, run: Run) -> int:
        """Epochs between checkpoints of this run."""
        return self.save_every * min(run.longer, self.longest)


_TINY = ("--preset", "tiny", "--batch-size", "32")
SETTINGS = {
    "cpu": Setting(256, 48, 2, 64, 256, 300, "vit_mini_patch8", _TINY),
    "falls": Setting(256, 24, 1, 64, 256, 300, "vit_mini_patch8", _TINY, taught=True, longest=1),
    "large": Setting(
        4096,
        400,
        10,
        128,
        2048,
        1000,
        "vit_small_patch16_224",
        ("--preset", "tiny", "--image-size", "128", "--batch-size", "256"),
    ),
}


@dataclass(frozen=True)
class Run:
    """One row of the study.

    Attributes:
        method: the trainer.
        name: of the row, its folder and its file.
        vit: whether it takes the setting's ViT; the others keep the network of their tiny preset.
        measured_at: image size for DSE and probes in units of the setting's: the grid of a ResNet is a
            thirty-second of the image, two tokens across at 64 px.
        longer: times the setting's epochs, for methods whose steps are cheap; as many checkpoints.
        flags: what differs from the tiny preset, beside what the setting changes.
        why: the reason for that.
    """

    method: str
    name: str = ""
    vit: bool = False
    measured_at: int = 1
    longer: int = 1
    flags: tuple[str, ...] = ()
    why: str = ""

    @property
    def title(self) -> str:
        """The name, or the method's if it has only one row."""
        return self.name or self.method


_HALF_BATCH = "twice the preset's rate, since half its batch halves it"
_CONV = "a ResNet, which is measured at twice the size; its steps are cheap"

# Quick and slow methods alternate, and what the paper saw degrade comes early: an unfinished study is of use.
RUNS = (
    Run("dino", vit=True),
    Run("mae", vit=True, longer=4, flags=("--lr", "0.008"), why=_HALF_BATCH),
    Run(
        "dino",
        name="dino-hot",
        vit=True,
        flags=("--teacher-temperature", "0.07", "--teacher-temperature-epochs", "10"),
        why="the temperature of the authors' longer runs, too high for a run as short as this",
    ),
    Run("ijepa", vit=True, longer=4, flags=("--lr", "0.002"), why=_HALF_BATCH),
    Run("byol", measured_at=2, longer=2, why=_CONV),
    Run("mocov3", vit=True, flags=("--lr", "0.004"), why=_HALF_BATCH),
    Run("densecl", measured_at=2, longer=2, why=_CONV),
    Run("barlowtwins", measured_at=2, longer=2, why=_CONV),
    Run("ibot", vit=True, flags=("--lr", "0.008"), why=_HALF_BATCH),
    Run("simsiam", measured_at=2, longer=2, why=_CONV),
    Run("swav", measured_at=2, longer=2, why=_CONV),
    Run("vicreg", measured_at=2, longer=2, why=_CONV),
    Run("esvit", flags=("--lr", "0.008"), why=f"a Swin; {_HALF_BATCH}"),
    Run("mec", measured_at=2, longer=2, why=_CONV),
    Run("resa", measured_at=2, longer=2, why=_CONV),
    Run("mugs", vit=True, flags=("--lr", "0.008"), why=_HALF_BATCH),
    Run("vicregl", measured_at=2, longer=2, why=_CONV),
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a study lives, and its images by size."""

    setting: Setting
    out: Path
    device: str
    results: Path
    train: Path
    held_out: dict[int, Path] = field(default_factory=dict)
    labelled: dict[int, Path] = field(default_factory=dict)


def main(
    runs: str = ",".join(run.title for run in RUNS),
    setting: str = "cpu",
    shard: str = "0/1",
    out: Path = Path("runs/study"),
    results: Path = RESULTS,
    device: str = "cpu",
) -> None:
    """Train, score and probe what is missing.

    Args:
        runs: names, separated by commas.
        setting: ``cpu`` or ``large``.
        shard: I/N takes every N-th of these runs, beginning with the I-th.
        out: folder of scenes and runs.
        results: folder of the CSV files.
        device: of trainers, watcher and probes.
    """
    names = runs.split(",")
    if unknown := set(names) - {run.title for run in RUNS}:
        raise SystemExit(f"no such run in the study: {', '.join(sorted(unknown))}")
    if setting not in SETTINGS:
        raise SystemExit(f"--setting is {setting!r}; expected {' or '.join(SETTINGS)}")
    first, parts = (int(number) for number in shard.split("/"))
    place = prepare(SETTINGS[setting], out / setting, device, results / setting)
    chosen = [run for run in RUNS if run.title in names]
    failed = []
    for run in chosen[first::parts]:
        start = time.monotonic()
        try:
            train(run, place)
            score(run, place)
            rows = measure(run, place)
        except Failed as error:  # the others go on
            failed.append(run.title)
            print(f"{run.title}: {error}", file=sys.stderr, flush=True)
            continue
        print(f"{run.title}: {rows} checkpoints, {time.monotonic() - start:.0f} s", flush=True)
    if failed:
        raise SystemExit(f"not finished: {', '.join(failed)}")


def prepare(setting: Setting, out: Path, device: str, results: Path) -> Place:
    """Make the scenes that are missing."""
    results.mkdir(parents=True, exist_ok=True)
    place = Place(
        setting=setting,
        out=out,
        device=device,
        results=results,
        train=write_folder(out / "train", setting.scenes, size=setting.size, seed=TRAIN_SEED),
    )
    for scale in {run.measured_at for run in RUNS}:
        size = scale * setting.size
        place.held_out[scale] = write_folder(
            out / f"held-out-{size}", setting.held_out, size=size, seed=HELD_OUT_SEED
        )
        images = write_folder(
            out / f"labelled-{size}", setting.labelled, size=size, seed=LABELLED_SEED, masks=True
        )
        place.labelled[scale] = images.parent
    return place


def train(run: Run, place: Place) -> None:
    """Train to the end, from the newest checkpoint if there is one."""
    folder, setting = place.out / run.title, place.setting
    if len(checkpoints(folder)) >= setting.checkpoints:
        return
    flags = [*flags_of(run, place), "--out", folder]
    if checkpoints(folder):
        flags += ["--resume"]
    elif setting.taught:
        flags += ["--init-from", start(run, place, flags)]
    call("dse_monitor", "train", run.method, *flags, log=place.out / f"{run.title}-train.log")


def flags_of(run: Run, place: Place) -> list[object]:
    """The trainer's flags, but where it starts and where it writes."""
    setting = place.setting
    every = setting.every(run)
    flags: list[object] = [*setting.flags, *run.flags]
    flags += ["--backbone", setting.backbone] if run.vit and setting.backbone else []
    flags += ["--epochs", every * (setting.epochs // setting.save_every), "--save-every", every]
    flags += ["--data", place.train, "--device", place.device, "--log-every", 10**9]
    return flags + (["--workers", 0] if place.device == "cpu" else [])


def start(run: Run, place: Place, flags: Sequence[object]) -> Path:
    """The checkpoint of epoch 0: the trainer's own after one step, with a taught network in it."""
    import study_starts  # needs the trainers, which the rest of the study only calls

    folder = place.out / "starts"
    target = folder / f"{run.title}.pth"
    if not target.exists():
        fresh = folder / run.title
        call(
            "dse_monitor",
            "train",
            run.method,
            *flags,
            "--out",
            fresh,
            "--max-steps",
            1,
            log=folder / "starts.log",
        )
        size = run.measured_at * place.setting.size
        study_starts.write(fresh / "checkpoint_last.pth", target, place.setting.scenes, size)
    return target


def score(run: Run, place: Place) -> None:
    """DSE of every checkpoint not scored yet, by the watcher."""
    folder = place.out / run.title
    first = folder / "checkpoint_0000.pth"
    if place.setting.taught and not first.exists():
        shutil.copyfile(place.out / "starts" / f"{run.title}.pth", first)
    flags = ["--images", place.held_out[run.measured_at], "--num-images", place.setting.held_out]
    flags += ["--image-size", run.measured_at * place.setting.size, "--device", place.device]
    flags += ["--once", "--plain", "--settle-seconds", 0]
    call("dse_monitor", "watch", folder, *flags, log=place.out / f"{run.title}-watch.log")


def measure(run: Run, place: Place) -> int:
    """Probe what was not probed and write the run's CSV file; returns its lines."""
    folder, target = place.out / run.title, place.results / f"{run.title}.csv"
    known = {float(row["epoch"]): row for row in read(target)}
    losses = epoch_losses(folder, place.setting.every(run))
    labelled = place.labelled[run.measured_at]
    prober = Prober(
        ProbeConfig(
            images=labelled / "images",
            masks=labelled / "masks",
            num_images=place.setting.labelled,
            image_size=pair(run.measured_at * place.setting.size),
            splits=2,
            device=place.device,
        )
    )
    for evaluation in ledger.read(folder / OUTPUT_FOLDER).evaluations:
        epoch = evaluation.source.epoch
        if epoch is None or epoch in known:
            continue
        if evaluation.status != "scored":
            print(f"{run.title} {evaluation.source.path}: {evaluation.status}: {evaluation.reason}")
            continue
        known[epoch] = line(
            run, evaluation, losses.get(epoch, math.nan), prober(folder / evaluation.source.path)
        )
        write(target, [known[at] for at in sorted(known)])
    return len(known)


def line(run: Run, evaluation: Evaluation, loss: float, probed: ProbeResult) -> dict[str, str]:
    """One checkpoint's numbers as they stand in the file."""
    parts = evaluation.components
    assert parts is not None
    assert evaluation.source.epoch is not None
    values = {"epoch": evaluation.source.epoch, "loss": loss}
    values |= {name: getattr(parts, name) for name in (*PARTS, "separability_dim_cov")}
    values |= {name: evaluation.companions.get(name, math.nan) for name in COMPANIONS}
    linear, knn = probed.linear, probed.knn
    scores = (linear.miou, linear.miou_std, linear.accuracy, knn.miou, knn.miou_std)
    values |= dict(zip(PROBES, scores, strict=True))
    return {"run": run.title, **{name: f"{value:.7g}" for name, value in values.items()}}


def epoch_losses(folder: Path, every: int) -> dict[float, float]:
    """Mean loss since the checkpoint before, by epochs done."""
    tags = EventAccumulator(str(folder)).Reload()
    steps_of = {event.step: event.value for event in tags.Scalars("train/loss")}  # a resumed step counts once
    values = [steps_of[step] for step in sorted(steps_of)]
    return {
        float(end): sum(values[end - every : end]) / every for end in range(every, len(values) + 1, every)
    }


def checkpoints(folder: Path) -> list[Path]:
    """What a run has written so far."""
    return sorted(folder.glob("checkpoint_*.pth"))


def read(path: Path) -> list[dict[str, str]]:
    """The lines of a run's file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """Replace a run's file as a whole."""
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer: csv.DictWriter[str] = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)


def call(module: str, *arguments: object, log: Path) -> None:
    """Run one of our programs to its end, its words in ``log``.

    Raises:
        Failed: it ended with an error.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        done = subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        raise Failed(f"{module} {arguments[0]} ended with {done.returncode}; see {log}")


if __name__ == "__main__":
    tyro.cli(main)
