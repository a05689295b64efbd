"""The order of a run's checkpoints and the axis it is shown on: the one definition of both. numpy alone.

A place in training is what is known of (epochs done, steps done). From the places of all checkpoints measured
under one settings follow

1. *which count*. A name that was rewritten at the same place counts in its newest version; the older one is
   ``replaced``. Names that hold the same weights and contradict each other in no place are one checkpoint,
   the one whose place says most; the others are ``merged`` into it. Everything else stays, however many
   share an epoch.
2. *their order*. Epoch first, then step, then file time, then the order of measuring. Where some know
   only their epoch and others only their step: by steps per epoch where those are known
   (:func:`steps_per_epoch`), else between the checkpoints that know both, and among what is left by file
   time.
3. *the axis*, the first of these on which no two share a position:

   ==========  ====================================================================================
   axis        when
   ==========  ====================================================================================
   ``epoch``   all know their epoch and no two the same
   ``step``    all know their step and it grows along the order
   ``epoch``   fractions tell all apart: step / (steps per epoch), or the epoch where no step is known
   ``order``   otherwise: 1, 2, 3, ...
   ==========  ====================================================================================

4. *which of them is the untrained network*: step 0; or no step and epoch 0, unless it was saved within that
   epoch or another is earlier. It is drawn, and takes no part in lambda, rules and the choice of the best.

None of this depends on the order in which checkpoints were measured, but for which version of a name is the
newest, and for ties on everything else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

NO_CONTENT = 0  # in Places.content: no digest is known
_MIX = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)  # odd constants of splitmix and xxHash


@dataclass(frozen=True)
class Places:
    """What is known of the places of some checkpoints, in the order they were measured in.

    Attributes:
        epoch: epochs done [n]; nan where unknown.
        step: optimiser steps done [n]; nan where unknown.
        time: when the file was written, seconds since 1970 [n]; nan where unknown.
        path: the name, as any number that is equal for equal names [n].
        content: the weights, likewise [n]; NO_CONTENT where unknown.
        within: saved while a further epoch than those counted was going on, as its name tells [n].
    """

    epoch: Floats
    step: Floats
    time: Floats
    path: Ints
    content: Ints
    within: Bools

    def __len__(self) -> int:
        return len(self.epoch)

    def take(self, rows: Ints) -> Places:
        """Those of some rows, in their order."""
        return Places(
            self.epoch[rows],
            self.step[rows],
            self.time[rows],
            self.path[rows],
            self.content[rows],
            self.within[rows],
        )


@dataclass(frozen=True)
class Order:
    """The checkpoints that count, in training order. Rows are those of the :class:`Places`.

    Attributes:
        axis: ``epoch``, ``step`` or ``order``.
        rows: of those that count [m].
        x: their positions on the axis [m], growing without ties.
        untrained: which of them are the untrained network [m].
        replaced: pairs of rows: an older version of a name, and the version that counts.
        merged: pairs of rows: another name of weights, and the row of these weights that counts.
        by_step: how many share their epoch with another and are told apart by their step.
        by_time: how many have a place by file time alone.
        steps_per_epoch: see :func:`steps_per_epoch`; only looked for where the order or the axis needs it.
    """

    axis: str
    rows: Ints
    x: Floats
    untrained: Bools
    replaced: tuple[tuple[int, int], ...] = ()
    merged: tuple[tuple[int, int], ...] = ()
    by_step: int = 0
    by_time: int = 0
    steps_per_epoch: int | None = None


def order(places: Places) -> Order:
    """The order of checkpoints measured under one settings; see the module's docstring."""
    replaced = _replaced(places)
    merged = _merged(places, replaced)
    gone = [row for row, _ in (*replaced, *merged)]
    rows = np.arange(len(places))
    if gone:
        left = np.ones(len(places), bool)
        left[gone] = False
        rows = rows[left]
    kept = places.take(rows) if gone else places
    line = _line(kept)
    return Order(
        axis=line.axis,
        rows=rows[line.rows],
        x=line.x,
        untrained=_untrained(kept)[line.rows],
        replaced=tuple(replaced),
        merged=tuple(merged),
        by_step=line.by_step,
        by_time=line.by_time,
        steps_per_epoch=line.steps_per_epoch,
    )


def steps_per_epoch(epoch: Floats, step: Floats) -> int | None:
    """Steps in an epoch, where checkpoints that state both leave one answer; None otherwise.

    With s steps in an epoch, a checkpoint with e whole epochs and t steps done has e s <= t < (e + 1) s. So
    s is at most the least t / e and above every t / (e + 1). It is known if a single whole number satisfies
    all, or if the largest that does, the least t / e, is attained at two different epochs: two checkpoints
    saved at the ends of epochs. Fractional epochs say nothing here and need nothing: they are places of
    their own.

    Args:
        epoch: epochs done [n]; nan where unknown.
        step: steps done [n]; nan where unknown.
    """
    found = epoch_bounds(epoch, step)
    if found is None:
        return None
    above, most = found
    if math.floor(above) == most - 1:
        return most
    ends = epoch[(epoch >= 1) & (step == epoch * most)]
    return most if len(ends) and ends.min() < ends.max() else None


def epoch_bounds(epoch: Floats, step: Floats) -> tuple[float, int] | None:
    """What the steps in an epoch are above, and the most they can be; None where no number fits."""
    both = np.isfinite(epoch) & np.isfinite(step) & (epoch == np.floor(epoch))
    e, t = epoch[both], step[both]
    late = e >= 1
    if not late.any() or e.min() == e.max():
        return None
    above, most = float((t / (e + 1)).max()), math.floor(float((t[late] / e[late]).min()))
    return (above, most) if most >= 1 and most > above else None


def fractions(places: Places, per_epoch: int | None) -> Floats:
    """Epochs done with their fractions [n]: step / per_epoch, else the epoch as it is, else nan.

    The quotient is the float64 nearest to the exact one: step 5 at 10 steps per epoch is 0.5.

    Args:
        places: of checkpoints.
        per_epoch: steps in an epoch, if known.
    """
    if per_epoch is None:
        return places.epoch.copy()
    whole = ~np.isfinite(places.epoch) | (places.epoch == np.floor(places.epoch))
    return np.where(np.isfinite(places.step) & whole, places.step / per_epoch, places.epoch)


@dataclass(frozen=True)
class _Line:
    axis: str
    rows: Ints
    x: Floats
    by_step: int = 0
    by_time: int = 0
    steps_per_epoch: int | None = None


def _line(places: Places) -> _Line:
    """Order and axis of checkpoints that all count."""
    n, epoch, step = len(places), places.epoch, places.step
    has_epoch, has_step = np.isfinite(epoch), np.isfinite(step)
    if has_epoch.all():
        rows = np.argsort(epoch, kind="stable")
        if _grows(epoch[rows]):
            return _Line("epoch", rows, epoch[rows])
    if n and has_step.all():
        by_epoch = bool(has_epoch.all())
        keys = (places.time, step, epoch) if by_epoch else (places.time, step)
        rows = np.lexsort(keys)
        tied = _tied(*(key[rows] for key in keys[1:]))
        by_step = _tied(epoch[rows]) - tied if by_epoch else 0
        if _grows(step[rows]):
            return _Line("step", rows, step[rows], by_step)
        if by_epoch or not has_epoch.any():  # steps that fall along the epochs make no fractions either
            return _Line("order", rows, _count(n), by_step, tied)
    per_epoch = steps_per_epoch(epoch, step)
    known = fractions(places, per_epoch)
    if per_epoch is not None and np.isfinite(known).all():
        rows = np.argsort(known, kind="stable")
        if _grows(known[rows]):
            return _Line("epoch", rows, known[rows], steps_per_epoch=per_epoch)
    rows, by_step, by_time = _by_all(places, known)
    return _Line("order", rows, _count(n), by_step, by_time, per_epoch)


def _by_all(places: Places, known: Floats) -> tuple[Ints, int, int]:
    """Rows in the order of all that is known; how many steps told apart, and how many file times alone."""
    has_epoch, has_step = np.isfinite(known), np.isfinite(places.step)
    by_epoch = has_epoch.sum() >= has_step.sum()
    mine, other = (known, places.step) if by_epoch else (places.step, known)
    rows, by_step, by_time = _chain(mine, other, places.time)
    rest = np.flatnonzero(~np.isfinite(mine) & np.isfinite(other))
    if len(rest):
        rest = rest[np.lexsort((places.time[rest], other[rest]))]
        rows = _inserted(rows, rest, other, places.time)
        by_time += len(rest)
    neither = np.flatnonzero(~has_epoch & ~has_step)
    if len(neither):
        neither = neither[np.argsort(places.time[neither], kind="stable")]
        at = np.searchsorted(_smooth(places.time[rows]), places.time[neither], side="right")
        rows = np.insert(rows, at, neither)
        by_time += len(neither)
    return rows, by_step, by_time


def _chain(mine: Floats, other: Floats, time: Floats) -> tuple[Ints, int, int]:
    """Rows that have a first count, by it, then by the other, then by file time; what told them apart.

    Where some of those tied have the other count and some have not, the latter go between them by file time.
    """
    rows = np.flatnonzero(np.isfinite(mine))
    rows = rows[np.lexsort((time[rows], np.nan_to_num(other[rows], nan=-1.0), mine[rows]))]
    by_other = by_time = 0
    for start, end in _runs(mine[rows]):
        group = rows[start:end]
        lacking = group[~np.isfinite(other[group])]
        having = group[len(lacking) :]
        twice = _tied(other[having])
        by_other += len(having) - twice if len(having) > 1 else 0
        by_time += twice + (len(lacking) if len(group) > 1 else 0)
        if len(lacking) and len(having):
            at = np.searchsorted(_smooth(time[having]), time[lacking], side="right")
            rows[start:end] = np.insert(having, at, lacking)
    return rows, by_other, by_time


def _inserted(rows: Ints, rest: Ints, other: Floats, time: Floats) -> Ints:
    """Rows with the rest among them: behind those known to be no later, and from there by file time.

    Args:
        rows: the chain, in order.
        rest: what to insert, ordered by their count.
        other: the count the rest have, and some of the chain.
        time: file times.
    """
    anchors = np.flatnonzero(np.isfinite(other[rows]))
    values = np.maximum.accumulate(other[rows[anchors]]) if len(anchors) else np.empty(0)
    at, before, stretch, smooth = np.empty(len(rest), np.int64), 0, (-1, -1), time[:0]
    for k, row in enumerate(rest):
        passed = int(np.searchsorted(values, other[row], side="right"))
        low = int(anchors[passed - 1]) + 1 if passed else 0
        high = int(anchors[passed]) if passed < len(anchors) else len(rows)
        if stretch != (low, high):
            stretch, smooth = (low, high), _smooth(time[rows[low:high]])
        before = at[k] = max(before, low + int(np.searchsorted(smooth, time[row], side="right")))
    return np.insert(rows, at, rest)


def _smooth(time: Floats) -> Floats:
    """Times along an order that fall nowhere: halfway between the latest before and the earliest after each.

    One file that was touched later, or has the time of its copy, moves few of the others.
    """
    if len(time) < 2:
        return time
    return (np.fmax.accumulate(time) + np.fmin.accumulate(time[::-1])[::-1]) / 2


def _replaced(places: Places) -> list[tuple[int, int]]:
    """Pairs (older version, version that counts) of names that were rewritten at one place."""
    placed = np.isfinite(places.epoch) | np.isfinite(places.step)
    if not placed.any() or _grows(places.epoch) or _grows(places.step):
        return []  # no place twice
    with np.errstate(over="ignore"):
        parts = [_bits(places.epoch), _bits(places.step), places.path.view(np.uint64)]
        key = sum(
            (part * np.uint64(mix) for part, mix in zip(parts, _MIX, strict=True)),
            np.zeros(len(places), "u8"),
        )
    rows = np.flatnonzero(placed)
    rows = rows[np.argsort(key[rows], kind="stable")]
    found = []
    for start, end in _runs(key[rows]):
        found += [(int(row), int(rows[end - 1])) for row in rows[start : end - 1]]
    return sorted(found)


def _merged(places: Places, replaced: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pairs (another name, the row that counts) of the same weights, where their places do not contradict."""
    known = places.content != NO_CONTENT
    known[[old for old, _ in replaced]] = False
    rows = np.flatnonzero(known)
    ordered = rows[np.argsort(places.content[rows], kind="stable")]
    found = []
    for start, end in _runs(places.content[ordered]):
        found += _merged_group(places, ordered[start:end])
    return sorted(found)


def _merged_group(places: Places, group: Ints) -> list[tuple[int, int]]:
    """The same of rows that hold the same weights.

    Those whose place says most come first; of a step counted in two epochs (one that has just ended) the
    later.
    """
    epoch, step, time = places.epoch[group], places.step[group], places.time[group]
    has_epoch, has_step = np.isfinite(epoch), np.isfinite(step)
    late = np.where(has_epoch, -epoch, 0.0)
    turn = group[np.lexsort((time, late, -(1 * has_epoch + 2 * has_step)))].tolist()
    by_step: dict[float, int] = {}
    by_epoch: dict[float, int] = {}
    found = []
    for row in turn:
        e, s = float(places.epoch[row]), float(places.step[row])
        if s == s:
            kept = by_step.setdefault(s, row)
            if kept == row and e == e:
                by_epoch.setdefault(e, row)
        elif e == e:
            kept = by_epoch.setdefault(e, row)
        else:
            kept = turn[0]
        if kept != row:
            found.append((row, kept))
    return found


def _untrained(places: Places) -> Bools:
    """Which are the untrained network [n]."""
    found = places.step == 0
    if (places.epoch == 0).any():
        perhaps = np.flatnonzero((places.epoch == 0) & ~np.isfinite(places.step) & ~places.within)
        if len(perhaps) and not found.any():
            found[perhaps[np.argmin(np.nan_to_num(places.time[perhaps], nan=math.inf))]] = True
    return found


def _runs(values: NDArray) -> Iterator[tuple[int, int]]:
    """Beginning and end of every stretch of equal values of two and more."""
    same = np.flatnonzero(values[1:] == values[:-1])
    if not len(same):
        return
    breaks = np.flatnonzero(np.diff(same) > 1)
    firsts, lasts = np.append(same[:1], same[breaks + 1]), np.append(same[breaks], same[-1:])
    yield from zip(firsts.tolist(), (lasts + 2).tolist(), strict=True)


def _tied(*keys: Floats) -> int:
    """How many share all keys with a neighbour."""
    if not len(keys[0]):
        return 0
    same = np.logical_and.reduce([key[1:] == key[:-1] for key in keys])
    return int((np.append(same, False) | np.append(False, same)).sum())


def _grows(values: Floats) -> bool:
    """Whether every value is above the one before it; nan is above nothing."""
    return bool(np.all(values[1:] > values[:-1])) and bool(np.isfinite(values[:1]).all())


def in_words(axis: str, at: float | None, epoch: float | None = None, step: float | None = None) -> str:
    """A position and what else is known: ``epoch 120``, ``step 1,200 (epoch 3)``, ``checkpoint 7``.

    Args:
        axis: ``epoch``, ``step`` or ``order``.
        at: the position; None where it is unknown.
        epoch: epochs done, if known.
        step: steps done, if known.
    """
    unit = "checkpoint" if axis == "order" else axis
    if at is None or not math.isfinite(at):
        return f"{unit} ?"
    more = []
    if axis != "epoch" and epoch is not None:
        more.append(f"epoch {_plain(epoch)}")
    if step is not None and (axis == "order" or (axis == "epoch" and at != epoch)):
        more.append(f"step {_plain(step)}")
    return f"{unit} {_plain(at)}" + (f" ({', '.join(more)})" if more else "")


def _plain(value: float) -> str:
    return f"{value:,.6g}" if value % 1 else f"{value:,.0f}"


def _count(n: int) -> Floats:
    return np.arange(1.0, n + 1)


def _bits(values: Floats) -> NDArray[np.uint64]:
    """Numbers as whole numbers, equal for equal values; one of their own for nan."""
    plain = np.where(np.isfinite(values), values, np.nan) + 0.0  # no negative zero, one nan
    return plain.view(np.uint64)
