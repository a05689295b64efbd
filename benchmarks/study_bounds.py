"""What the study's mIoU can be at least and at most: its networks with random weights, and taught by labels.

The floor is what the probes find in a network that learned nothing. The ceiling is the same network trained
on the masks of the study's training scenes, so it says how much a network of this size can learn from so few
scenes, not how hard the scenes are. Probes, labelled scenes and image sizes are the study's.

    python benchmarks/study_bounds.py [--epochs 48] [--seeds 3] [--taught 1]
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.study import RESULTS, SETTINGS, TRAIN_SEED, prepare
from dse_monitor import scenes
from dse_monitor.preprocessing import Preprocessing
from dse_monitor.probe.prober import IGNORED, ProbeConfig, read_pairs, score_tokens, token_labels
from dse_monitor.trainers import backbones

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH, LR, WEIGHT_DECAY = 32, 2e-3, 0.05  # of AdamW, for the ceiling; ours, not tuned
COLUMNS = ("network", "weights", "seed", "miou_linear", "miou_knn")


class Network(NamedTuple):
    """A network of the study, with the fixed positions of MAE, I-JEPA and MoCo v3 or timm's own."""

    title: str
    backbone: str
    measured_at: int
    sincos: bool = False


NETWORKS = (
    Network("ViT", "vit_mini_patch8", 1),
    Network("ViT, fixed positions", "vit_mini_patch8", 1, sincos=True),
    Network("Swin", "swin_mini_patch4", 1),
    Network("ResNet", "resnet_mini", 2),
)


class Scenes(NamedTuple):
    """Normalised images [n, 3, S, S] and the classes of their pixels [n, S, S]."""

    images: Tensor
    masks: np.ndarray


def main(
    epochs: int = 48,
    seeds: int = 3,
    taught: int = 1,
    out: Path = Path("runs/study"),
    results: Path = RESULTS,
) -> None:
    """Print floor and ceiling of every network and write ``study_bounds.csv`` beside the study's folder.

    Args:
        epochs: of the training with labels.
        seeds: random weights per network.
        taught: how many of them are trained with labels.
        out: folder of the study's scenes; made if missing.
        results: folder of the study's CSV files.
    """
    setting = SETTINGS["cpu"]
    place = prepare(setting, out / "cpu", "cpu", results / "cpu")
    rows = []
    print("| network | random | trained with labels |\n| --- | --- | --- |")
    for network in NETWORKS:
        size = network.measured_at * setting.size
        folder = place.labelled[network.measured_at]
        labelled = ProbeConfig(images=folder / "images", masks=folder / "masks", num_images=setting.labelled)
        how = Preprocessing(image_size=(size, size), mean=IMAGENET_MEAN, std=IMAGENET_STD)
        measured = _scenes(*read_pairs(labelled, how))
        train = training_scenes(setting.scenes, size)
        for seed in range(seeds):
            torch.manual_seed(seed)
            model = build(network, size)
            settle(model, train.images)
            rows.append((network.title, "random", seed, *score(model, measured)))
            if seed < taught:
                fit(model, train, epochs, seed)
                rows.append((network.title, "supervised", seed, *score(model, measured)))
        cells = [_cell(rows, network.title, weights) for weights in ("random", "supervised")]
        print(f"| {network.title} | {' | '.join(cells)} |", flush=True)
    with (results.parent / "study_bounds.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


def training_scenes(count: int, size: int) -> Scenes:
    """What the study trains on, with its masks."""
    drawn = [scenes.generate(index, size, TRAIN_SEED) for index in range(count)]
    return _scenes(*(np.stack(part) for part in zip(*drawn, strict=True)))


def build(network: Network, size: int) -> nn.Module:
    """The network with random weights."""
    spec = backbones.describe(network.backbone, size)
    model = backbones.build(spec)
    if network.sincos:
        positions: Tensor = model.pos_embed  # pyright: ignore[reportAssignmentType]
        grid = round((positions.shape[1] - 1) ** 0.5)
        positions.data.copy_(backbones.sincos_positions(positions.shape[2], grid, cls=True))
    return model


def settle(model: nn.Module, images: Tensor) -> None:
    """Give batch normalisation the means of real images: without, a random ResNet is measured unfairly."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # cumulative
    with torch.no_grad():
        for part in images.split(BATCH):
            backbones.features(model.train(), part)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # torch's


def fit(model: nn.Module, train: Scenes, epochs: int, seed: int) -> None:
    """Train the network to tell the class of every token, with flips and a one-cycle rate."""
    with torch.no_grad():
        _, count, width = backbones.features(model.eval(), train.images[:1]).dense.shape
    grid = round(count**0.5)
    labels = torch.from_numpy(token_labels(train.masks, (grid, grid)))
    head = nn.Linear(width, len(scenes.CLASSES))
    weights = [weight for weight in (*model.parameters(), *head.parameters()) if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=LR, weight_decay=WEIGHT_DECAY)
    steps = epochs * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(labels), (BATCH,), generator=generator)
        images, truth = train.images[chosen], labels[chosen]
        for axis in (1, 2):  # of the grid: up and down, left and right
            if torch.rand((), generator=generator) < 0.5:
                images = images.flip(axis + 1)
                truth = truth.unflatten(1, (grid, grid)).flip(axis).flatten(1)
        guess = head(backbones.features(model, images).dense)
        loss = F.cross_entropy(guess.flatten(0, 1), truth.flatten(), ignore_index=IGNORED)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


@torch.no_grad()
def score(model: nn.Module, measured: Scenes) -> tuple[str, str]:
    """Linear and nearest-neighbour mIoU, as the study measures them."""
    model.eval()
    tokens = torch.cat([backbones.features(model, part).dense for part in measured.images.split(BATCH)])
    grid = round(tokens.shape[1] ** 0.5)
    linear, knn = score_tokens(tokens, token_labels(measured.masks, (grid, grid)), splits=2)
    return f"{linear.miou:.5f}", f"{knn.miou:.5f}"


def _scenes(pixels: np.ndarray, masks: np.ndarray) -> Scenes:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return Scenes((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std, masks)


def _cell(rows: list[tuple], network: str, weights: str) -> str:
    """Means over seeds in percent: linear, then nearest neighbours in brackets."""
    found = np.array([row[3:] for row in rows if row[:2] == (network, weights)], float) * 100
    linear, knn = found.mean(0)
    return f"{linear:.1f} ± {found[:, 0].std():.1f} ({knn:.1f})"


if __name__ == "__main__":
    tyro.cli(main)
