"""Checkpoints: what is in them, atomic writing with rotation, finding and reading them again.

Files hold tensors and plain Python only, so ``torch.load(weights_only=True)`` reads them.
``checkpoint_{N:04d}.pth`` is written after N whole epochs, ``checkpoint_last.pth`` when a run is told to stop
between two.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dse_monitor.trainers import distributed
from dse_monitor.trainers.backbones import Backbone
from dse_monitor.trainers.engine import sharding
from dse_monitor.trainers.method import Method
from dse_monitor.trainers.settings import TrainingError

FORMAT = "dse-train"
SCHEMA = 1
LAST = "checkpoint_last.pth"
_NUMBERED = re.compile(r"checkpoint_(\d{4,})\.pth")


def contents(
    name: str,
    method: Method,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    *,
    epoch: int,
    step: int,
    regularizer: torch.Tensor | None,
    run: dict[str, Any],
    first_step: int = 0,
) -> dict[str, Any]:
    """Everything a resumed run needs; every process must call it, for random states are gathered.

    Args:
        name: of the method.
        method: unwrapped.
        optimizer: its optimiser.
        scaler: gradient scaler, perhaps disabled.
        epoch: whole epochs done.
        step: optimiser steps done.
        regularizer: extra state of the DSE term, or None.
        run: plain facts a resumed run must agree on (seed, data, processes, steps per epoch).
        first_step: optimiser steps that were done when the run began, by another run.

    Returns:
        Keys ``format, schema, method, epoch, step, first_step, backbone, images, evaluated, model, optimizer,
        scaler, rng, recipe, regularizer, run``; ``images`` is the mean and std
        they were normalised with, ``rng`` is a list by process and holds the buffers that differ between
        processes.
    """
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "method": name,
        "epoch": epoch,
        "step": step,
        "first_step": first_step,
        "backbone": _described(method.backbone_spec),
        "images": {"mean": list(method.mean), "std": list(method.std)},
        "evaluated": method.evaluated,
        "model": sharding.whole(dict(method.state_dict())),
        "optimizer": sharding.whole(optimizer.state_dict()),
        "scaler": scaler.state_dict() if scaler.is_enabled() else None,
        "rng": _gather(_process_state(method)),
        "recipe": dataclasses.asdict(method.recipe),
        "regularizer": regularizer,
        "run": run,
    }


def write(content: dict[str, Any], path: Path) -> None:
    """A file is whole under its name or not there: temporary name beside it, fsync, rename.

    Raises:
        TrainingError: it cannot be written, mostly for lack of space.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch turns the file's errors into its own
        cause = error if isinstance(error, OSError) else error.__context__ or error
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise TrainingError(
            f"{path} could not be written ({reason}); checkpoints from before are whole: make space, then "
            "--resume"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def numbered(out: Path) -> list[Path]:
    """The numbered checkpoints of a run, oldest first."""
    found = ((_NUMBERED.fullmatch(path.name), path) for path in out.glob("checkpoint_*.pth"))
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def rotate(out: Path, keep: int) -> None:
    """Remove the oldest numbered checkpoints beyond ``keep`` (0 keeps all)."""
    for path in numbered(out)[:-keep] if keep else []:
        path.unlink()


def read(path: Path) -> dict[str, Any]:
    """A checkpoint of ours, on the CPU.

    Raises:
        TrainingError: it is missing, damaged, or not written by these trainers.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TrainingError(f"{path} does not exist; give a checkpoint of these trainers") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, pickle.UnpicklingError):  # torch's words advise to run what is in the file
            reason = "it is damaged, or holds more than tensors and plain values"
        raise TrainingError(f"{path} cannot be read ({reason}); choose another checkpoint") from error
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if found != FORMAT:
        raise TrainingError(f"{path} has format {found!r}, expected {FORMAT!r}: only our own files can go on")
    if not isinstance(content.get("schema"), int):
        raise TrainingError(f"{path} names no schema: it is incomplete; choose another checkpoint")
    if content["schema"] > SCHEMA:
        raise TrainingError(f"{path} has schema {content['schema']}, this version knows {SCHEMA}: update")
    return content


def newest(out: Path, passed_over: list[str] | None = None) -> tuple[Path, dict[str, Any]] | None:
    """The readable checkpoint of a run that got furthest, or None if the run has none.

    Args:
        out: folder of the run.
        passed_over: gets what is wrong with newer ones.

    Raises:
        TrainingError: there are checkpoints, and none can be read.
    """
    found: list[tuple[Path, dict[str, Any]]] = []
    problem: TrainingError | None = None
    for candidates in ([out / LAST], reversed(numbered(out))):
        for path in candidates:
            if not path.exists():
                continue
            try:
                found.append((path, read(path)))
                break  # an older numbered one cannot have got further
            except TrainingError as error:
                problem = problem or error
                if passed_over is not None:
                    passed_over.append(str(error))
    if not found and problem is not None:
        raise problem
    return max(found, key=lambda pair: pair[1]["step"], default=None)


def restore(
    content: dict[str, Any],
    path: Path,
    name: str,
    method: Method,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    run: dict[str, Any],
) -> None:
    """Put a run back where a checkpoint left it: weights, buffers, optimiser, scaler and random states.

    Raises:
        TrainingError: the checkpoint belongs to another method, recipe or run; the message lists what
        differs.
    """
    _check_method(content, path, name)
    _check_settings(content, path, {**dataclasses.asdict(method.recipe), **run})
    _load(content, method, optimizer, scaler)
    state = content["rng"][distributed.rank()]
    buffers = dict(method.named_buffers())
    for key, value in state["buffers"].items():
        buffers[key].copy_(value)
    torch.random.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))


def best(run: Path) -> Path:
    """The best checkpoint by DSE that is left of a run: what ``dse-monitor watch`` wrote to dse/best.json.

    Raises:
        TrainingError: nobody has measured the run, or nothing that was measured is left.
    """
    listing = run / "dse" / "best.json"
    try:
        found = json.loads(listing.read_text(encoding="utf-8"))
        surviving = found["surviving"]
    except FileNotFoundError:
        raise TrainingError(
            f"{listing} does not exist: score the run first (dse-monitor watch {run} --images DIR), "
            "or give --init-from one checkpoint"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{listing} cannot be read ({error}); give --init-from one checkpoint") from error
    if not surviving:
        raise TrainingError(f"{listing} names no checkpoint that is left; give --init-from one checkpoint")
    return run / surviving["file"]


def go_on_from(
    path: Path,
    name: str,
    method: Method,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    steps_per_epoch: int,
) -> int:
    """Take over another run's weights, optimiser and scaler, not its random states; returns its steps done.

    Raises:
        TrainingError: another method or recipe, or epochs of another length.
    """
    content = read(path)
    _check_method(content, path, name)
    ours = {**dataclasses.asdict(method.recipe), "steps_per_epoch": steps_per_epoch}
    _check_settings(content, path, ours)
    _load({**content, "model": _fitted(content["model"], method)}, method, optimizer, scaler)
    return content["step"]


def start_from(path: Path, name: str, method: Method) -> int:
    """Load only the weights (teachers, centres and queues included) of a checkpoint; returns its epochs done.

    Raises:
        TrainingError: another method, or another network.
    """
    content = read(path)
    _check_method(content, path, name)
    try:
        sharding.load(method, _fitted(content["model"], method))
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise TrainingError(
            f"{path} (backbone {content['backbone']['name']}) does not fit this recipe: {detail}. "
            "Give the flags of the run it comes from."
        ) from error
    return content["epoch"]


def _fitted(weights: dict[str, Any], method: Method) -> dict[str, Any]:
    """Weights for a run of perhaps another number of processes: its own queues stay where sizes differ."""
    own = dict(method.named_buffers())
    kept = {
        key: own[key]
        for key in method.rank_buffers
        if key in weights and weights[key].shape != own[key].shape
    }
    return {**weights, **kept}


def _check_method(content: dict[str, Any], path: Path, name: str) -> None:
    if content["method"] != name:
        raise TrainingError(f"{path} was trained with {content['method']}, not with {name}")


def _check_settings(content: dict[str, Any], path: Path, ours: dict[str, Any]) -> None:
    theirs = {**content["recipe"], **content["run"]}
    changed = [key for key, value in ours.items() if theirs.get(key) != value]
    if changed:
        differences = ", ".join(f"{key} {theirs.get(key)} -> {ours[key]}" for key in changed)
        raise TrainingError(
            f"{path} cannot go on with other settings ({differences}): give the same ones, or start a new "
            "run with --init-from and without --more-epochs"
        )


def _load(
    content: dict[str, Any],
    method: Method,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    sharding.load(method, content["model"])
    sharding.load_optimizer(optimizer, content["optimizer"])
    if scaler.is_enabled() and content["scaler"]:
        scaler.load_state_dict(content["scaler"])


def _described(spec: Backbone) -> dict[str, Any]:
    return {
        "name": spec.name,
        "kwargs": dict(spec.kwargs),
        "image_size": spec.image_size,
        "num_heads": spec.num_heads,
        "norm_eps": spec.norm_eps,
    }


def _process_state(method: Method) -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    buffers = dict(method.named_buffers())
    return {
        "torch": torch.random.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "buffers": {key: buffers[key].cpu() for key in method.rank_buffers},
    }


def _gather(state: dict[str, Any]) -> list[dict[str, Any]]:
    if distributed.world_size() == 1:
        return [state]
    states: list[Any] = [None] * distributed.world_size()
    dist.all_gather_object(states, state)
    return states
