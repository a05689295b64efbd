"""Runs that were never trained: event data, training loss and feature maps with a known course.

For the tests of the tab, for its benchmark and for pictures. Everything follows from a seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from dse_monitor.facts import Fact
from dse_monitor.metric.components import Components
from dse_monitor.publish.events import EventWriter
from dse_monitor.publish.state import run_state
from dse_monitor.runs.record import Alert, Evaluation, Settings, Source
from dse_monitor.runs.series import Series

START = 1_790_000_000.0  # seconds since 1970 at which every run begins
STEPS_PER_EPOCH = 250
SECONDS_PER_EPOCH = 600.0
EXAMPLES = 6  # images in a strip
GRID = 14  # tokens along a side
TILE = 112  # pixels along the side of an original image
SETTINGS = Settings(
    images="7c1e0a5d9b42",
    num_images=2048,
    facts=(
        Fact("heads", "6", "width 384 in the models of facebookresearch/dino"),
        Fact("interpolation", "bicubic", "as in most recipes", assumed=True),
    ),
)


@dataclass
class Run:
    """What was written: the records, in the order of evaluation."""

    folder: Path
    evaluations: list[Evaluation] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)


def write_run(
    folder: Path,
    *,
    checkpoints: int = 40,
    degraded: bool = True,
    every: float = 5.0,
    seed: int = 0,
    settings: Settings = SETTINGS,
    loss: bool = True,
    maps: bool = False,
    failures: Sequence[int] = (),
    order: Sequence[int] | None = None,
    watcher: dict | None = None,
    clock: float = START,
) -> Run:
    """Write one run.

    Args:
        folder: the run's folder, as a trainer would use it.
        checkpoints: how many were evaluated.
        degraded: separability falls after 40 % of the run; else everything keeps rising.
        every: epochs between checkpoints.
        seed: of the noise.
        settings: how they were measured.
        loss: whether the trainer logged a loss.
        maps: whether feature maps are painted.
        failures: indices of checkpoints that could not be measured.
        order: order of evaluation; that of training by default.
        watcher: what the watcher does now.
        clock: when the run began, seconds since 1970.
    """
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(checkpoints, 3))
    run = Run(folder)
    for number, index in enumerate(order if order is not None else range(checkpoints), 1):
        epoch = every * (index + 1)
        run.evaluations.append(
            evaluation(
                index,
                epoch=epoch,
                progress=(index + 1) / checkpoints,
                degraded=degraded,
                noise=noise[index],
                seq=int((clock + SECONDS_PER_EPOCH * every * checkpoints) * 1e6) + number,
                settings=settings,
                clock=clock,
                status="failed" if index in failures else "scored",
                map_file=f"media/map-{index:05d}.png" if maps and index not in failures else "",
            )
        )
    if degraded:
        run.alerts += alerts(run, folder.name)
    if maps:
        paint(folder / "dse", checkpoints, degraded, seed, skip=failures)
    if loss:
        write_loss(folder, checkpoints, every, seed, clock)
    publish(run, watcher)
    return run


def publish(run: Run, watcher: dict | None = None) -> None:
    """Write the event data of a run."""
    with EventWriter(run.folder / "dse") as writer:
        for record in run.evaluations:
            writer.add_evaluation(record)
        for alert in run.alerts:
            writer.add_alert(alert)
        writer.set_state(run_state(run.evaluations, run.alerts, run=run.folder.name, watcher=watcher))


def evaluation(
    index: int,
    *,
    epoch: float,
    progress: float,
    degraded: bool,
    noise: np.ndarray,
    seq: int,
    settings: Settings = SETTINGS,
    clock: float = START,
    status: str = "scored",
    map_file: str = "",
    step: int | None = None,
) -> Evaluation:
    """One checkpoint at a given share of its run's length."""
    rise = 1 - math.exp(-8 * progress)
    fall = max(0.0, progress - 0.4) if degraded else -0.03 * progress
    parts = Components(
        m_inter=0.74 + 0.09 * rise - 0.10 * fall + 0.0015 * noise[0],
        m_intra_image=1.66 - 0.10 * rise + 0.10 * fall + 0.002 * noise[1],
        m_intra_batch=1.70 - 0.08 * rise + 0.12 * fall + 0.002 * noise[1],
        m_dim=0.56 + 0.10 * rise - 0.06 * fall + 0.001 * noise[2],
        m_inter_se=0.0015,
        m_intra_image_se=0.002,
        m_intra_batch_se=0.002,
        m_dim_se=0.001,
        separability_se=0.003,
        separability_dim_cov=5e-7,
        images=settings.num_images,
        tokens=GRID * GRID,
        width=384,
    )
    source = Source(
        path=f"checkpoint{int(epoch):04d}.pth",
        aliases=("checkpoint_latest.pth",) if progress == 1 else (),
        content=f"{index:064x}",
        size=1_123_456_789,
        mtime=clock + SECONDS_PER_EPOCH * epoch,
        epoch=epoch,
        epoch_source="key 'epoch' of the file, plus one",
        step=round(STEPS_PER_EPOCH * epoch) if step is None else step,
        step_source="key 'global_step' of the file",
        layout="dino",
        encoder="teacher",
        arch="vit 384x12, 6 heads, patch 16",
    )
    measured = status == "scored"
    return Evaluation(
        status=status,
        source=source,
        settings=settings if measured else None,
        components=parts if measured else None,
        reason="" if measured else f"{source.path} ends after 412 MB of 1,123 MB; waiting did not help",
        error="" if measured else "IncompleteCheckpoint",
        seconds={"read": 0.8, "forward": 4.1, "metric": 1.2, "total": 6.1} if measured else {"total": 0.4},
        wall_time=source.mtime + 30,
        seq=seq,
        map_file=map_file,
        companions={"RankMe": 210 - 60 * fall + noise[0], "alpha-ReQ": 1.1 + 0.2 * fall} if measured else {},
    )


def alerts(run: Run, name: str) -> list[Alert]:
    """The alert a degraded run ends with: pending, then firing, from the first clear drop on."""
    line = Series.from_evaluations(run.evaluations)
    if line.best is None:
        return []
    low = [i for i in range(line.best, len(line)) if line.dse[line.best] - line.dse[i] > 0.03]
    if len(low) < 2:
        return []
    best, changes = line.evaluations[line.best], []
    for status, at in (("pending", low[0]), ("firing", low[1])):
        now = line.evaluations[at]
        drop = float(line.dse[line.best] - line.dse[at])
        changes.append(
            Alert(
                kind="degradation",
                status=status,
                severity="warning",
                run=name,
                epoch=now.source.epoch,
                step=now.source.step,
                since=float(line.x[low[0]]),
                axis=line.axis,
                best_at=float(line.x[line.best]),
                best_path=best.source.path,
                drop=drop,
                drop_se=0.004,
                lam=line.lam,
                shares={"separability": 0.78, "m_dim": 0.22},
                cause="separability",
                message=f"DSE fell by {drop:.3f} from its best at epoch {best.source.epoch:g}; 78 % of the "
                "drop is separability. The best checkpoint is kept.",
                key=f"{name}/degradation/1/{status}",
                wall_time=now.wall_time,
                seq=now.seq + 1,
            )
        )
    return changes


def write_loss(folder: Path, checkpoints: int, every: float, seed: int, clock: float) -> None:
    """A training loss that keeps falling, logged ten times per checkpoint, and the epoch beside it."""
    rng = np.random.default_rng(seed + 1)
    count = min(10 * checkpoints, 1000)
    writer = EventFileWriter(str(folder), max_queue_size=1000)
    for k in range(1, count + 1):
        epoch = every * checkpoints * k / count
        value = 6.5 * math.exp(-3 * k / count) + 2.4 + 0.05 * rng.normal()
        values = [("train/loss", value), ("epoch", epoch), ("lr", 1e-3 * (1 - k / count))]
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=number) for tag, number in values])
        step = round(STEPS_PER_EPOCH * epoch)
        writer.add_event(Event(wall_time=clock + SECONDS_PER_EPOCH * epoch, step=step, summary=summary))
    writer.close()


def paint(output: Path, checkpoints: int, degraded: bool, seed: int, skip: Sequence[int] = ()) -> None:
    """Originals and one strip of maps per checkpoint: regions sharpen, and blur again in a degraded run.

    Clusters are the things of a scene, for each token the likelier to be another one the less clear it is.
    """
    rng = np.random.default_rng(seed + 2)
    (output / "media").mkdir(parents=True, exist_ok=True)
    scenes = [_scene(rng) for _ in range(EXAMPLES)]
    originals = np.concatenate([_original(scene, rng) for scene in scenes], axis=1)
    Image.fromarray(originals).save(output / "media" / "images.webp", quality=90)
    palette = rng.uniform(40, 230, size=(8, 3))
    texture = rng.normal(size=(EXAMPLES, GRID, GRID, 3))
    for index in range(checkpoints):
        if index in skip:
            continue
        progress = (index + 1) / checkpoints
        clear = 1 - math.exp(-8 * progress)
        if degraded:
            clear *= 1 - 0.9 * max(0.0, progress - 0.4) / 0.6
        rows: list[list[np.ndarray]] = [[], [], []]  # features, clusters within an image, shared clusters
        for scene, pattern in zip(scenes, texture, strict=True):
            cells = _cells(scene, GRID)
            colour = clear * palette[cells] + (1 - clear) * 128 + (14 + 34 * (1 - clear)) * pattern
            rows[0].append(colour)
            astray = pattern[..., 0] > 3.2 * clear - 0.4
            for row, things in zip(rows[1:], (3, len(palette)), strict=True):
                row.append(palette[np.where(astray, cells + 1, cells) % things])
        strip = np.concatenate([np.concatenate(row, axis=1) for row in rows])
        strip = np.clip(strip, 0, 255).astype(np.uint8)
        Image.fromarray(strip).save(output / "media" / f"map-{index:05d}.png")


def _scene(rng: np.random.Generator) -> list[tuple[float, float, float, float]]:
    return [tuple(rng.uniform((0.15, 0.15, 0.12, 0.12), (0.85, 0.85, 0.34, 0.34))) for _ in range(3)]


def _cells(scene: list[tuple[float, float, float, float]], side: int) -> np.ndarray:
    """Which thing lies where: 0 and 1 for sky and ground, 2 onwards for ellipses."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    cells = (y > 0.55).astype(int)
    for kind, (cx, cy, rx, ry) in enumerate(scene, 2):
        cells[((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1] = kind
    return cells


def _original(scene: list[tuple[float, float, float, float]], rng: np.random.Generator) -> np.ndarray:
    colours = np.array([(150, 190, 225), (120, 150, 90), (190, 90, 60), (230, 200, 120), (90, 80, 120)])
    grain = rng.normal(scale=10, size=(TILE, TILE, 1))
    return np.clip(colours[_cells(scene, TILE)] + grain, 0, 255).astype(np.uint8)
