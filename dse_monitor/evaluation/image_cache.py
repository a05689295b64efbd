"""The files that hold a sample and its pixels: written whole, and checked before they are used. No torch."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dse_monitor import atomic
from dse_monitor.evaluation import fingerprints
from dse_monitor.evaluation.recipe import PICTURES, Files

STALE_SECONDS = 3600.0  # s; a half-written cache file this old belongs to a process that was killed


@dataclass(frozen=True)
class Skipped:
    """A file that looked like an image and could not be used."""

    name: str
    reason: str


@dataclass(frozen=True)
class Sample:
    """Which files were drawn, as kept in the cache folder for the life of a run.

    Attributes:
        names: relative to the folder, in order.
        found: files that could have been drawn.
        skipped: those that could not be used.
        files: what they are.
        left_out: files of arrays beside pictures, which were not looked at.
    """

    names: tuple[str, ...]
    found: int
    skipped: tuple[Skipped, ...]
    files: Files = PICTURES
    left_out: int = 0


def write_pixels(target: Path, rows: Iterator[NDArray[Any]], words: str) -> None:
    """Write images [h, w, C] one after another, their fingerprint beside them; each whole or not at all."""
    running, count = hashlib.sha256(words.encode()), 0
    with atomic.replacing(target) as part, open(part, "wb") as file:
        for row in rows:
            data = row.tobytes()
            running.update(data)
            file.write(data)
            count += 1
    fingerprints.write(target, count, running.hexdigest())


def check_pixels(file: Path, count: int, bytes_each: int, words: str) -> str:
    """The fingerprint of a pixel file that is whole and unchanged, else an empty string.

    Args:
        file: the file.
        count: images it must hold.
        bytes_each: of one image.
        words: what the fingerprint covers besides the pixels.
    """
    try:
        images, sha256 = fingerprints.read(file)
        if images != count or file.stat().st_size != count * bytes_each:
            return ""
        running = hashlib.sha256(words.encode())
        with open(file, "rb") as stream:
            while block := stream.read(1 << 24):
                running.update(block)
        return sha256[: fingerprints.LENGTH] if running.hexdigest() == sha256 else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def write_sample(file: Path, sample: Sample) -> None:
    """Write a sample, whole or not at all."""
    data: dict[str, Any] = {
        "names": sample.names,
        "found": sample.found,
        "skipped": [asdict(skip) for skip in sample.skipped],
    }
    if sample.files != PICTURES:
        data["files"] = sample.files.to_json()
    if sample.left_out:
        data["left_out"] = sample.left_out
    _write_json(file, data)


def read_sample(file: Path) -> Sample | None:
    """The sample written to a file; None when there is none, or a damaged one."""
    try:
        data = json.loads(file.read_bytes())
        skipped = tuple(Skipped(item["name"], item["reason"]) for item in data["skipped"])
        names = tuple(str(name) for name in data["names"])
        files = Files.from_json(data["files"]) if "files" in data else PICTURES
        return Sample(names, int(data["found"]), skipped, files, int(data.get("left_out", 0)))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_stale_parts(cache: Path) -> None:
    """Remove half-written files that killed processes left behind."""
    for part in cache.glob(f"*{atomic.PART}"):
        if time.time() - part.stat().st_mtime > STALE_SECONDS:
            part.unlink(missing_ok=True)


def _write_json(target: Path, data: dict[str, Any]) -> None:
    atomic.write_bytes(target, json.dumps(data, indent=1).encode())
