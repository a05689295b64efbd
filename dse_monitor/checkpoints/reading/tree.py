"""From a value that may refer to itself to a tree anybody can walk: no cycles, no depth, no hidden bulk."""

from __future__ import annotations

from typing import Any

from dse_monitor.checkpoints.reading.contents import Opaque, Storage, TensorRef
from dse_monitor.checkpoints.reading.understood import finish
from dse_monitor.errors import UnsafeCheckpoint

MAX_DEPTH = 200  # containers in containers; Python code that walks a tree by calling itself ends at 1,000
MAX_VALUES = 4_000_000  # values met when shared parts are counted each time they are met; ours

_LEAVES = {str, int, float, bool, type(None), bytes, complex, set, frozenset, TensorRef}


class _Frame:
    """One container on the way down: its parts, those done, and the values met below it."""

    __slots__ = ("changed", "new", "parts", "total", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self.parts = _parts(value)
        self.new: list[Any] = []
        self.changed = False
        self.total = 1


def untangle(root: Any, where: str) -> tuple[Any, list[str]]:
    """Make a value read from a pickle safe to walk.

    A container inside itself is replaced, where it comes round again, by an `Opaque` that says so, and so is
    an object nested deeper than MAX_DEPTH inside other objects (a pickled module may refer to its whole
    trainer).

    Args:
        root: the value; lists, dicts and Opaques are changed in place.
        where: file and record, for messages.

    Returns:
        The tree, and notes on what was replaced.

    Raises:
        UnsafeCheckpoint: plain containers nested deeper than MAX_DEPTH, or shared so often that a walk would
            meet more than MAX_VALUES values.
    """
    notes: list[str] = []
    finished: dict[int, tuple[Any, int]] = {}
    replaced: list[Any] = []  # kept alive, so that no new object can take their place in `finished`
    on_path: set[int] = set()
    frames: list[_Frame] = []
    opaque_depth = 0
    result: tuple[Any, int] | None = _leaf(root)
    if result is None:
        frames.append(_Frame(root))
        on_path.add(id(root))
        opaque_depth += type(root) is Opaque
    while frames:
        frame = frames[-1]
        if len(frame.new) == len(frame.parts):
            frames.pop()
            on_path.discard(id(frame.value))
            opaque_depth -= type(frame.value) is Opaque
            value = _assemble(frame)
            replaced.append(frame.value)
            result = finished[id(frame.value)] = (value, frame.total)
            if frames:
                _add(frames[-1], frame.value, result, where)
            continue
        part = frame.parts[len(frame.new)]
        done = _leaf(part) or finished.get(id(part))
        if done is None and id(part) in on_path:
            done = Opaque(_name(part), (), note="refers to a container it is part of"), 1
            notes.append(f"a {_name(part)} that contains itself was cut where it comes round again")
        if done is None and len(frames) >= MAX_DEPTH:
            if not opaque_depth:
                raise UnsafeCheckpoint(
                    f"{where} nests containers more than {MAX_DEPTH} deep, expected the few levels of a "
                    "checkpoint; "
                    "save the weights alone (a state dict) to have it measured"
                )
            done = Opaque(_name(part), (), note=f"nested deeper than {MAX_DEPTH} levels"), 1
            notes.append(f"a {_name(part)} nested deeper than {MAX_DEPTH} levels was left out")
        if done is not None:
            _add(frame, part, done, where)
            continue
        frames.append(_Frame(part))
        on_path.add(id(part))
        opaque_depth += type(part) is Opaque
    assert result is not None
    return result[0], list(dict.fromkeys(notes))


def _add(frame: _Frame, part: Any, done: tuple[Any, int], where: str) -> None:
    value, total = done
    frame.new.append(value)
    frame.changed |= value is not part
    frame.total += total
    if frame.total > MAX_VALUES:
        raise UnsafeCheckpoint(
            f"{where} unfolds to more than {MAX_VALUES:,} values by using the same ones again and again, "
            "expected a "
            "checkpoint; save the weights alone (a state dict) to have it measured"
        )


def _leaf(value: Any) -> tuple[Any, int] | None:
    """A value without parts as it will stand in the tree; None for containers."""
    kind = type(value)
    if kind in _LEAVES:
        return value, 1
    if kind in (dict, list, tuple, Opaque):
        return None
    if kind is Storage:
        return Opaque("torch storage", (), note="not built: a storage without a tensor"), 1
    return Opaque(kind.__name__, (), note="not built"), 1


def _parts(value: Any) -> list[Any]:
    if type(value) is dict:
        return list(value.values())
    if type(value) is Opaque:
        return [value.args, value.state, value.items]
    return list(value)


def _assemble(frame: _Frame) -> Any:
    """The container with its finished parts."""
    value, new = frame.value, frame.new
    if type(value) is Opaque:
        if frame.changed:
            args, value.state, value.items = new
            value.args = args if type(args) is tuple else ()
        return finish(value)
    if not frame.changed:
        return value
    if type(value) is tuple:
        return tuple(new)
    if type(value) is list:
        value[:] = new
    else:
        for key, item in zip(list(value), new, strict=True):
            value[key] = item
    return value


def _name(value: Any) -> str:
    return value.name if type(value) is Opaque else type(value).__name__
