"""How far can DSE be trusted? Its scatter over images and seeds, and what clusters and image size change.

Runs of the study are measured again, at their networks' own tokens:

- ``images``: disjoint samples of 64 to 4,096 fresh scenes: scatter of DSE, how often the printed standard
  error covers it, and how much M_dim depends on the number of images;
- ``seeds``: ten seeds of clustering and permutation on the same scenes, and whether giving two checkpoints
  the same seed, or the same scenes, makes their difference less noisy;
- ``clusters``: every checkpoint of a run with fewer and more clusters: does DSE follow mIoU better?
- ``sizes``: every checkpoint at other image sizes: the same question.

    python benchmarks/study_stability.py [--setting falls] [--experiments images,seeds] [--out runs/study]

One line per measurement goes to ``study_stability_SETTING.csv``; what is there is not measured again.
``study_tables.py`` makes the tables.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor

from dse_monitor import scenes
from dse_monitor.checkpoints import load_encoder
from dse_monitor.errors import FeatureError
from dse_monitor.evaluation import decoding, images
from dse_monitor.evaluation.evaluator import batches
from dse_monitor.metric import Components, average, measure
from dse_monitor.preprocessing import Preprocessing

if __package__:
    from benchmarks.study import RESULTS, RUNS, SETTINGS, Place, Run, checkpoints, prepare, read
else:
    from study import (  # pyright: ignore[reportImplicitRelativeImport]
        RESULTS,
        RUNS,
        SETTINGS,
        Place,
        Run,
        checkpoints,
        prepare,
        read,
    )

EXPERIMENTS = ("images", "seeds", "clusters", "sizes")
NAMES = ("dino", "ibot", "mae", "ijepa", "esvit", "byol", "densecl", "vicreg")
FRESH_SEED = 3  # of the scenes drawn here; the study uses 0 to 2
POOL = {64: 8192, 128: 4096}  # fresh scenes by their size; large ones are slow to draw
COUNTS = (64, 128, 256, 512, 1024, 2048, 4096)
SAMPLES = 8  # disjoint samples at most
SEEDS = 10
SEED_COUNTS = (256, 2048)  # scenes for the seeds
CLUSTERS = (  # per image, per group; the released code has (3, 24)
    *((2, 24), (3, 12), (3, 24), (3, 48), (5, 24), (8, 24), (8, 64)),
    *((3, 64), (3, 96), (8, 96), (16, 96)),
)
SIZES = (0.75, 1.0, 1.5, 2.0)  # times the size the run was measured at
BATCH, GROUP = 1024, 8  # images per metric batch and per clustering, as the product has them
COLUMNS = (
    "experiment",
    "run",
    "epoch",
    "images",
    "sample",
    "seed",
    "local",
    "global",
    "size",
    "separability",
    "m_dim",
    "separability_se",
    "m_dim_se",
    "covariance",
)


class Task(NamedTuple):
    """One measurement to make, by the columns that name it."""

    images: int
    sample: int = 0
    seed: int = 0
    local: int = 3
    groups: int = 24
    scale: float = 1.0


def main(
    setting: str = "falls",
    experiments: str = ",".join(EXPERIMENTS),
    runs: str = ",".join(NAMES),
    out: Path = Path("runs/study"),
    results: Path = RESULTS,
    device: str = "cpu",
) -> None:
    """Measure what is missing.

    Args:
        setting: of the study; its runs must be there.
        experiments: names, separated by commas.
        runs: names, separated by commas.
        out: folder of the study's scenes and runs.
        results: folder of the study's CSV files.
        device: of forward passes and metric.
    """
    place = prepare(SETTINGS[setting], out / setting, device, results / setting)
    target = results / f"study_stability_{setting}.csv"
    for experiment in experiments.split(","):
        for run in (run for run in RUNS if run.title in runs.split(",")):
            rows = list(measured(experiment, run, place, known(target)))
            append(target, rows)
            print(f"{experiment}, {run.title}: {len(rows)} new measurements", flush=True)


def measured(experiment: str, run: Run, place: Place, done: set[tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """Lines of the experiment that are missing for a run."""
    files = checkpoints(place.out / run.title)
    if experiment in ("images", "seeds"):
        files = [files[0], files[len(files) // 4], files[-1]]
    size = run.measured_at * place.setting.size
    for path in files:
        tasks = list(tasks_of(experiment, POOL[size]))
        missing = [
            task for task in tasks if _key(experiment, run.title, _epoch(path), size, task) not in done
        ]
        if not missing:
            continue
        encoder = load_encoder(path)
        for scale in sorted({task.scale for task in missing}):
            crop = round(size * scale / encoder_patch(encoder.arch)) * encoder_patch(encoder.arch)
            pixels = _pixels(experiment, place, run, size, crop)
            try:
                tokens = encoder.encode(pixels, device=place.device)
            except FeatureError as error:  # a ViT has positions for one size
                print(f"{run.title} at {crop} px: {error}")
                continue
            for task in (task for task in missing if task.scale == scale):
                values = components(tokens, task)
                key = _key(experiment, run.title, _epoch(path), size, task)
                yield dict(zip(COLUMNS, (*key, *values), strict=True))


def tasks_of(experiment: str, pool: int) -> Iterator[Task]:
    """What an experiment measures of one checkpoint."""
    if experiment == "images":
        for count in (count for count in COUNTS if 2 * count <= pool):
            for sample in range(min(SAMPLES, pool // count)):
                yield Task(count, sample=sample)
    elif experiment == "seeds":
        for count in (count for count in SEED_COUNTS if count <= pool):
            for seed in range(SEEDS):
                yield Task(count, seed=100 * seed)  # batches of one measurement have neighbouring seeds
    elif experiment == "clusters":
        for local, groups in CLUSTERS:
            yield Task(256, local=local, groups=groups)
    else:
        for scale in SIZES:
            yield Task(256, scale=scale)


def components(tokens: Tensor, task: Task) -> tuple[str, ...]:
    """The numbers of a measurement as they stand in the file."""
    chosen = tokens[task.sample * task.images : (task.sample + 1) * task.images]
    parts: list[Components] = []
    for index, part in enumerate(batches(len(chosen), BATCH, GROUP)):
        seed = task.seed + index
        parts.append(
            measure(
                chosen[part], group=GROUP, local_clusters=task.local, global_clusters=task.groups, seed=seed
            )
        )
    found = average(parts)
    numbers = (found.separability, found.m_dim, found.separability_se, found.m_dim_se)
    return tuple(f"{number:.8g}" for number in (*numbers, found.separability_dim_cov))


def encoder_patch(arch: str) -> int:
    """What an image side must be a multiple of: patches for a ViT, its five halvings for the others."""
    words = arch.replace(",", "").split()
    return int(words[words.index("patch") + 1]) if words[0] == "vit" else 32


def known(path: Path) -> set[tuple[str, ...]]:
    """The measurements in the file."""
    return {tuple(row[name] for name in COLUMNS[:9]) for row in read(path)}


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add lines to the file."""
    with path.open("a", newline="") as file:
        writer: csv.DictWriter[str] = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(rows)


def _key(experiment: str, run: str, epoch: int, size: int, task: Task) -> tuple[str, ...]:
    crop = f"{size * task.scale:g}"
    return (experiment, run, *(str(v) for v in (epoch, *task[:5])), crop)


def _epoch(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


def _pixels(experiment: str, place: Place, run: Run, size: int, crop: int) -> NDArray[np.uint8]:
    """The scenes of an experiment: fresh ones, or those that the study measured DSE on."""
    if experiment in ("images", "seeds"):
        return _fresh(place.out.parent / f"fresh-{size}.npy", size)
    folder = place.held_out[run.measured_at]
    names, _ = images.offered(folder)
    how = Preprocessing(image_size=(crop, crop), mean=(0.0,) * 3, std=(1.0,) * 3)  # pixels alone are used
    found = decoding.decode(folder, names, partial(decoding.read_picture, how=how))
    return np.stack([picture for _, picture in found if not isinstance(picture, Exception)])


def _fresh(path: Path, size: int) -> NDArray[np.uint8]:
    if not path.exists():
        count = POOL[size]
        drawn = np.stack([scenes.generate(index, size, FRESH_SEED)[0] for index in range(count)])
        np.save(path.with_suffix(".part.npy"), drawn)
        path.with_suffix(".part.npy").replace(path)
    return np.load(path)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    tyro.cli(main)
