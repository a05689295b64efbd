"""The files that hold a sample and its pixels: written whole, and checked before they are used. No torch."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dse_monitor import atomic
from dse_monitor.evaluation.decoding import RECIPE

STALE_SECONDS = 3600.0  # s; a half-written cache file this old belongs to a process that was killed


@dataclass(frozen=True)
class Skipped:
    """A file that looked like an image and could not be used."""

    name: str
    reason: str


@dataclass(frozen=True)
class Sample:
    """Which files were drawn, as kept in the cache folder for the life of a run."""

    names: tuple[str, ...]
    found: int
    skipped: tuple[Skipped, ...]


def write_pixels(target: Path, rows: Iterator[NDArray[np.uint8]], size: int, resize: int) -> None:
    """Write images [S, S, 3] one after another, their fingerprint beside them; each whole or not at all."""
    running, count = _fingerprint(size, resize), 0
    with atomic.replacing(target) as part, open(part, "wb") as file:
        for row in rows:
            data = row.tobytes()
            running.update(data)
            file.write(data)
            count += 1
    _write_json(target.with_suffix(".json"), {"images": count, "sha256": running.hexdigest()})


def check_pixels(file: Path, sample: Sample, size: int, resize: int) -> str:
    """The fingerprint of a pixel file that is whole and unchanged, else an empty string."""
    try:
        expected = json.loads(file.with_suffix(".json").read_bytes())
        length = len(sample.names) * size * size * 3
        if expected["images"] != len(sample.names) or file.stat().st_size != length:
            return ""
        running = _fingerprint(size, resize)
        with open(file, "rb") as stream:
            while block := stream.read(1 << 24):
                running.update(block)
        return running.hexdigest()[:16] if running.hexdigest() == expected["sha256"] else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def write_sample(file: Path, sample: Sample) -> None:
    """Write a sample, whole or not at all."""
    _write_json(file, asdict(sample))


def read_sample(file: Path) -> Sample | None:
    """The sample written to a file; None when there is none, or a damaged one."""
    try:
        data = json.loads(file.read_bytes())
        skipped = tuple(Skipped(item["name"], item["reason"]) for item in data["skipped"])
        return Sample(tuple(str(name) for name in data["names"]), int(data["found"]), skipped)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_stale_parts(cache: Path) -> None:
    """Remove half-written files that killed processes left behind."""
    for part in cache.glob(f"*{atomic.PART}"):
        if time.time() - part.stat().st_mtime > STALE_SECONDS:
            part.unlink(missing_ok=True)


def _fingerprint(size: int, resize: int) -> Any:
    """A running hash; feed it the pixels in order."""
    return hashlib.sha256(f"{RECIPE}; {resize}; {size}; ".encode())


def _write_json(target: Path, data: dict[str, Any]) -> None:
    atomic.write_bytes(target, json.dumps(data, indent=1).encode())
