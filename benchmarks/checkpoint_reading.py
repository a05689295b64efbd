"""What reading a checkpoint costs: time beside a plain read of as many bytes, and memory.

The last row is `load_encoder` as a whole: reading, checksums, digest, the test for NaN, building the network.

    python benchmarks/checkpoint_reading.py [--gigabytes 2.0] [--encoder-megabytes 300] [--repeats 5]

Writes the files into a temporary folder (removed afterwards) and reads each in a fresh process. The page
cache is warm in both cases, so the figures compare work and copies, not disks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console
from rich.table import Table

from dse_monitor.checkpoints.archive import Archive, TensorRef, open_archive, walk

if TYPE_CHECKING:
    import torch

MEGABYTE = 1 << 20
LOADED = "load_encoder, torch zip"
KINDS = ("torch zip", "torch zip without checksums", "torch legacy", "safetensors")


def write(folder: Path, gigabytes: float, encoder_megabytes: float) -> dict[str, Path]:
    """The same tensors in every container: an encoder of 150 tensors under "model", the rest beside it."""
    import safetensors.torch
    import torch

    rows = int(encoder_megabytes * MEGABYTE / 150 / 4 / 1024)
    model = {f"encoder.{k}": torch.randn(rows, 1024) for k in range(150)}
    others = max(1, int((gigabytes * 1024 - encoder_megabytes) / 64))
    rest = {f"optimizer.{k}": torch.randn(16, MEGABYTE) for k in range(others)}
    paths = {kind: folder / f"{kind.replace(' ', '-')}.pth" for kind in KINDS}
    value = {"model": model, "optimizer": rest, "epoch": 10}
    torch.save(value, paths["torch zip"])
    torch.serialization.set_crc32_options(False)
    torch.save(value, paths["torch zip without checksums"])
    torch.serialization.set_crc32_options(True)
    torch.save(value, paths["torch legacy"], _use_new_zipfile_serialization=False)
    safetensors.torch.save_file({**model, **rest}, paths["safetensors"])
    loaded = folder / "whole.pth"
    torch.save({"epoch": 10, "dino_loss": {}, "optimizer": rest, **networks(encoder_megabytes)}, loaded)
    many = folder / "many.pth"
    torch.save({f"layer.{k}.weight": torch.zeros(4, 4) for k in range(3480)}, many)
    return {**paths, "3,480 small tensors": many, LOADED: loaded}


def networks(megabytes: float) -> dict[str, dict[str, torch.Tensor]]:
    """Student and teacher of DINO around a vision transformer of width 768, as deep as the size asks for."""
    import torch
    from timm.models.vision_transformer import VisionTransformer

    depth = max(1, round(megabytes * MEGABYTE / 4 / 7.1e6))  # parameters of a block
    vit = VisionTransformer(depth=depth, num_classes=0, weight_init="skip")
    state = {name: torch.randn(value.shape) for name, value in vit.state_dict().items()}
    return {
        "student": {f"module.backbone.{name}": torch.randn(value.shape) for name, value in state.items()},
        "teacher": {f"backbone.{name}": value for name, value in state.items()},
    }


def child(command: list[str]) -> dict[str, float]:
    """The figures a fresh process prints."""
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def peak_megabytes() -> float:
    # Not ru_maxrss: a child starts with its parent's.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measure(path: Path) -> dict[str, float]:
    """Open a file and read its encoder, in a process that does nothing else."""
    before = peak_megabytes()
    start = time.perf_counter()
    with open_archive(path) as archive:
        opened = time.perf_counter() - start
        start = time.perf_counter()
        found = archive.read(encoder_of(archive))
        archive.verify_unchanged()
    read = time.perf_counter() - start
    size = sum(map(len, found)) / MEGABYTE
    return {"open": opened, "read": read, "size": size, "grown": peak_megabytes() - before}


def measure_load(path: Path) -> dict[str, float]:
    """`load_encoder` in a process that has imported what it needs and does nothing else."""
    import timm.models.vision_transformer  # noqa: F401
    import torch

    from dse_monitor.checkpoints.load import load_encoder

    torch.zeros(1 << 20).sum()  # threads and the like are there
    reset_peak()
    before = peak_megabytes()
    start = time.perf_counter()
    encoder = load_encoder(path)
    read = time.perf_counter() - start
    size = sum(parameter.nbytes for parameter in encoder.module.parameters()) / MEGABYTE
    return {"open": 0.0, "read": read, "size": size, "grown": peak_megabytes() - before}


def reset_peak() -> None:
    """Let the peak begin at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def encoder_of(archive: Archive) -> list[TensorRef]:
    """The tensors that are no optimiser's and no student's."""
    return [
        ref
        for keys, ref in walk(archive.tree)
        if isinstance(ref, TensorRef) and "optimizer" not in str(keys) and "student" not in str(keys)
    ]


def measure_plain(path: Path) -> dict[str, float]:
    """Read as many bytes without any checks, in another such process."""
    with open_archive(path) as archive:
        refs = encoder_of(archive)
        sizes = [ref.nbytes for ref in refs]
    return {"plain": plain_read(sizes, path)}


def plain_read(sizes: list[int], path: Path) -> float:
    """Seconds to read as many bytes, in pieces of the same sizes, into fresh memory."""
    start = time.perf_counter()
    descriptor = os.open(path, os.O_RDONLY)
    position, kept = 0, []
    for size in sizes:
        done = 0
        while done < size:
            kept.append(os.pread(descriptor, size - done, position + done))
            done += len(kept[-1])
        position += size
    os.close(descriptor)
    return time.perf_counter() - start


def main(
    gigabytes: float = 2.0,
    encoder_megabytes: float = 300.0,
    repeats: int = 5,
    folder: Path | None = None,
    only: Path | None = None,
    plain: bool = False,
    load: bool = False,
) -> None:
    """Print the table.

    Args:
        gigabytes: size of each large file.
        encoder_megabytes: part of it that is read.
        repeats: fresh processes per file; the smallest figure of each column is printed.
        folder: where the temporary folder is made.
        only: measure this file and print JSON; what the fresh processes are started with.
        plain: with `only`, read the bytes without the project's reader.
        load: with `only`, load the encoder.
    """
    if only is not None:
        figures = measure_plain(only) if plain else (measure_load if load else measure)(only)
        print(json.dumps(figures))
        return
    table = Table(title=f"reading checkpoints, {len(os.sched_getaffinity(0))} cores, best of {repeats}")
    for column in ("file", "MB", "read MB", "open s", "read s", "plain s", "ratio", "peak MB"):
        table.add_column(column, justify="left" if column == "file" else "right")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for kind, path in write(Path(place), gigabytes, encoder_megabytes).items():
            command = [sys.executable, __file__, "--only", str(path)]
            ours = [*command, "--load"] if kind == LOADED else command
            runs = [{**child(ours), **child([*command, "--plain"])} for _ in range(repeats)]
            best = {key: min(run[key] for run in runs) for key in runs[0]}
            figures = (path.stat().st_size / MEGABYTE, best["size"])
            seconds = (best["open"], best["read"], best["plain"])
            table.add_row(
                kind,
                *(f"{figure:,.1f}" for figure in figures),
                *(f"{figure:.3f}" for figure in seconds),
                f"{(best['open'] + best['read']) / best['plain']:.2f}",
                f"{best['grown']:,.1f}",
            )
    Console(width=110).print(table)


if __name__ == "__main__":
    tyro.cli(main)
