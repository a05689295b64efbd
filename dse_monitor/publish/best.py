"""The best checkpoint for scripts and people: `best.json`, a link `best`, and copies kept before rotation.

All lie in the run's output folder; the run's own files are never touched (a hard link adds a name, no more).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dse_monitor import atomic
from dse_monitor.runs.history import Selection
from dse_monitor.runs.record import OUTPUT_FOLDER, Evaluation, finite
from dse_monitor.runs.series import Series

NAME = "best.json"
LINK = "best"
KEEP = "keep"
INDEX = "index.json"  # in KEEP: which file holds which evaluation
KEEP_BYTES = 200 << 30  # most that copies may take on disk; hard links are free until the original goes. Ours
CHUNK = 8 << 20
SAME_TIME_SECONDS = 1e-3  # a file time as float64 is exact to a microsecond; ours

Locate = Callable[[Evaluation], str | None]


@dataclass(frozen=True)
class Kept:
    """A file in the keep folder.

    Attributes:
        name: in the keep folder.
        seq: the evaluation it belongs to.
        size: bytes.
        mtime_ns: of the file, nanoseconds.
    """

    name: str
    seq: int
    size: int
    mtime_ns: int


class Keeper:
    """Keeps the best checkpoints of one run from being rotated away.

    Args:
        run: the run's folder.
        out: its output folder.
        count: how many of the candidates are kept; 0 keeps none.
        is_rolling: names that the trainer rewrites in place: these are copied, as a hard link would change
            too.
        limit: bytes that all kept files may have together.
        cancelled: asked while copying; True gives up.
    """

    def __init__(
        self,
        run: Path,
        out: Path,
        count: int,
        is_rolling: Callable[[str], bool],
        *,
        limit: int = KEEP_BYTES,
        cancelled: Callable[[], bool] = lambda: False,
    ):
        self._run, self._out, self._count = run, out, count
        self._is_rolling, self._limit, self._cancelled = is_rolling, limit, cancelled
        self.kept: dict[int, Kept] = {}
        self.problem = ""
        self._load()

    def path(self, seq: int) -> Path | None:
        """The kept file of an evaluation, if it is still as it was kept."""
        kept = self.kept.get(seq)
        if kept is None:
            return None
        path = self._out / KEEP / kept.name
        return path if _signature(path) == (kept.size, kept.mtime_ns) else None

    def update(self, line: Series, locate: Locate) -> None:
        """Keep the first candidates of a series that can still be found, and drop what is none any more.

        Raises:
            OSError: the output folder cannot be written.
        """
        if not self._count:
            return
        self.problem = ""
        wanted = [line.evaluations[index] for index in line.candidates[: self._count]]
        for seq in list(self.kept):
            if seq not in {evaluation.seq for evaluation in wanted} or self.path(seq) is None:
                self._drop(seq)
        for evaluation, index in zip(wanted, line.candidates, strict=False):
            if evaluation.seq in self.kept:
                continue
            found = locate(evaluation)
            if found is not None:
                self._keep(evaluation, found, f"{line.axis}{line.x[index]:.10g}", locate)
        self._save()

    def _keep(self, evaluation: Evaluation, found: str, position: str, locate: Locate) -> None:
        source = self._run / found
        name = f"{position}-{found.replace('/', '_')}"
        target = self._out / KEEP / name
        size = _bytes(source)
        if size + sum(kept.size for kept in self.kept.values()) > self._limit:
            self.problem = f"{found} is not kept: {size / 2**30:.1f} GB more would pass the limit"
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic.replacing(target) as draft:
                _duplicate(source, draft, link=not self._is_rolling(found), cancelled=self._cancelled)
                if locate(evaluation) is None:
                    raise _Cancelled
                atomic.remove(target)
        except (FileNotFoundError, _Cancelled):  # rotated away just now, or rewritten while we copied
            return
        signature = _signature(target)
        if signature is not None:
            self.kept[evaluation.seq] = Kept(name, evaluation.seq, *signature)

    def _drop(self, seq: int) -> None:
        atomic.remove(self._out / KEEP / self.kept.pop(seq).name)

    def _load(self) -> None:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            for entry in json.loads((self._out / KEEP / INDEX).read_bytes()):
                kept = Kept(str(entry["name"]), int(entry["seq"]), int(entry["size"]), int(entry["mtime_ns"]))
                if kept.name == Path(kept.name).name:
                    self.kept[kept.seq] = kept

    def _save(self) -> None:
        folder = self._out / KEEP
        if not folder.exists():
            return
        entries = [vars(kept) for kept in self.kept.values()]
        atomic.write_text(folder / INDEX, json.dumps(entries, indent=1) + "\n")
        known = {kept.name for kept in self.kept.values()} | {INDEX}
        for name in os.listdir(folder):  # left by a watcher that was killed between two steps
            if name not in known:
                atomic.remove(folder / name)


def describe(
    run: Path, line: Series, locate: Locate, kept: Callable[[int], Path | None] = lambda seq: None
) -> dict[str, Any]:
    """The best checkpoint and the candidates as plain JSON types.

    Args:
        run: the run's folder; paths are relative to it.
        line: the run's series.
        locate: path (relative to the run) of a file that still holds an evaluation's version; None if it is
            gone.
        kept: the kept file of an evaluation's sequence number.

    Returns:
        ``run``, ``folder`` (of the run), ``axis``, ``lam``, ``measured`` (checkpoints the best is chosen
        among), ``notes`` (what was scored and is not among them, and what the order rests on), ``best`` (None
        before the first), and ``candidates``, best first. Each entry has ``path``, ``epoch``, ``step``,
        ``dse``, ``dse_se``, ``seq``, ``exists``, ``file`` (where it can be read now, relative to the run;
        None if it is gone) and ``kept``. ``surviving`` is the best entry that can still be read.
    """

    def entry(index: int) -> dict[str, Any]:
        evaluation = line.evaluations[index]
        copy, found = kept(evaluation.seq), locate(evaluation)
        file = found if found is not None else os.path.relpath(copy, run) if copy is not None else None
        return {
            "path": evaluation.source.path,
            "epoch": evaluation.source.epoch,
            "step": evaluation.source.step,
            "dse": finite(float(line.dse[index])),
            "dse_se": finite(float(line.dse_se[index])),
            "seq": evaluation.seq,
            "exists": file is not None,
            "file": file,
            "kept": None if copy is None else os.path.relpath(copy, run),
        }

    candidates = [entry(index) for index in line.candidates]
    surviving = next((item for item in candidates if item["exists"]), None)
    if candidates and surviving is None:
        survivors = (entry(index) for index in _perhaps_left(line))
        surviving = next((item for item in survivors if item["exists"]), None)
    return {
        "run": run.name,
        "folder": str(run.absolute()),
        "axis": line.axis,
        "lam": finite(float(line.lam)),
        "measured": line.counted,
        "notes": [note.text for note in line.notes],
        "best": candidates[0] if candidates else None,
        "candidates": candidates,
        "surviving": surviving,
    }


def _perhaps_left(line: Series) -> Iterator[int]:
    """Indices of a series, best first, without those whose files are known to be gone.

    In a run of weeks that keeps its last few checkpoints nearly all are; to look for each at every new one
    would take longer and longer.
    """
    index = np.arange(len(line))
    if isinstance(line.evaluations, Selection):
        index = index[line.evaluations.left()]
    index = index[~line.untrained[index]]
    yield from map(int, index[np.argsort(-line.dse[index], kind="stable")])


def publish(out: Path, run: Path, best: dict[str, Any]) -> None:
    """Replace `best.json` and the link `best`; readers see the old or the new, never a part.

    Raises:
        OSError: the output folder cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    atomic.write_text(out / NAME, json.dumps(best, indent=1, allow_nan=False) + "\n")
    chosen = best["surviving"]
    link = out / LINK
    if chosen is None or not chosen["file"]:
        link.unlink(missing_ok=True)
        return
    target = os.path.relpath(run / chosen["file"], out)
    if not (link.is_symlink() and os.readlink(link) == target):
        atomic.link(link, target)


def readable_files(out: Path, evaluations: Sequence[Evaluation]) -> list[Path | None]:
    """Where each evaluation's checkpoint can be read now, for scripts that have only the output folder.

    A file counts when its size and time are those that were measured; the kept copy stands in for one that
    was rotated away or rewritten.

    Args:
        out: the run's output folder.
        evaluations: any of the run.

    Returns:
        One path for each evaluation, None where nothing is left of it.
    """
    run = out.parent
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        folder = Path(json.loads((out / NAME).read_bytes())["folder"])
        run = folder if out.name != OUTPUT_FOLDER else run  # a run may have been moved with its output
    keeper = Keeper(run, out, 0, lambda name: False)
    return [_readable(run, evaluation) or keeper.path(evaluation.seq) for evaluation in evaluations]


def _readable(run: Path, evaluation: Evaluation) -> Path | None:
    source = evaluation.source
    for name in (source.path, *source.aliases):
        path = run / name
        signature = _signature(path)
        if signature is None:
            continue
        size, mtime = signature[0], signature[1] / 1e9
        same = size == source.size and abs(mtime - source.mtime) < SAME_TIME_SECONDS
        if same or path.is_dir() or not math.isfinite(source.mtime):  # folders are not rewritten in place
            return path
    return None


class _Cancelled(Exception):
    """The watcher is asked to end, or the original changed meanwhile."""


def _duplicate(source: Path, target: Path, *, link: bool, cancelled: Callable[[], bool]) -> None:
    """Another name for a file or a folder of files, or a copy where that is wanted or links are refused."""
    if source.is_dir():
        target.mkdir()
        for inside in sorted(source.rglob("*")):
            place = target / inside.relative_to(source)
            if inside.is_dir():
                place.mkdir()
            else:
                _duplicate(inside, place, link=link, cancelled=cancelled)
        return
    real = source.resolve(strict=True)
    if link:
        with contextlib.suppress(OSError):
            os.link(real, target)
            return
    with real.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(CHUNK):
            if cancelled():
                raise _Cancelled
            writer.write(chunk)
        os.fsync(writer.fileno())
    shutil.copystat(real, target)


def _signature(path: Path) -> tuple[int, int] | None:
    """Size and newest change of a kept file or folder."""
    try:
        if not path.is_dir():
            found = path.stat()
            return found.st_size, found.st_mtime_ns
        inside = [file.stat() for file in path.rglob("*") if file.is_file()]
        return sum(f.st_size for f in inside), max((f.st_mtime_ns for f in inside), default=0)
    except OSError:
        return None


def _bytes(path: Path) -> int:
    signature = _signature(path)
    return signature[0] if signature else 0
