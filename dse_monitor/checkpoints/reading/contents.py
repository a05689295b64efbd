"""What is found in a checkpoint: plain values, tensors by description, everything else by name only.

Nothing here is built from the file's classes. A `TensorRef` says where a tensor's bytes lie; an `Opaque`
records that the file asked for an object, and with what, without making it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dse_monitor.checkpoints.reading.byte_source import Record

# Bytes per element of the dtypes a tensor can have; names as in torch, without "torch.".
ITEM_SIZES = {
    "bool": 1, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "uint64": 8,
    "int64": 8, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex32": 4, "complex64": 8,
    "complex128": 16, "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
}  # fmt: skip
COMPLEX = {"complex32", "complex64", "complex128"}


class Unbuilt(Exception):
    """A value of a known kind that is left as an `Opaque`; the text says why."""


class Contradiction(Exception):
    """A description that cannot be true; the text says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A run of bytes that tensors are views of: a record of a file, or bytes that stood in the pickle itself.

    Attributes:
        dtype: the element type, torch's name; "" when the storage is untyped.
        nbytes: length.
        record: where it lies, or None when ``inline`` holds it.
        inline: the bytes themselves.
        big_endian: True when elements must be swapped after reading.
    """

    dtype: str
    nbytes: int
    record: Record | None = None
    inline: bytes | None = None
    big_endian: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """One box of a tensor that was saved in pieces: first index and size per dimension, and the piece."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    record: Record
    is_zip: bool = True  # the record is a torch zip of one tensor; otherwise the tensor's plain bytes


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor by description; its bytes are read by `Archive.read`.

    Attributes:
        dtype: torch's name without "torch.".
        shape: size per dimension.
        nbytes: bytes of the contiguous tensor.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    _offset: int = field(default=0, repr=False)  # bytes into the storage
    _stride: tuple[int, ...] = field(default=(), repr=False)  # elements
    _storage: Storage | None = field(default=None, repr=False)
    _chunks: tuple[Chunk, ...] = field(default=(), repr=False)


@dataclass(slots=True, eq=False, repr=False)
class Opaque:
    """An object the file asked for and did not get: its class or function by name, and what came with it.

    Attributes:
        name: qualified name, such as ``argparse.Namespace``.
        args: what it was to be called with; None when the file names the class or function itself.
        state: what was to be set on it (usually its ``__dict__``).
        items: what was to be appended (list) or stored under keys (dict), for subclasses of containers.
        note: why it was left at that, where there is more to say.
    """

    name: str
    args: tuple[Any, ...] | None = None
    state: Any = None
    items: list[Any] | dict[Any, Any] | None = None
    note: str = ""

    def __repr__(self) -> str:
        return f"Opaque({self.name}{': ' + self.note if self.note else ''})"


def shown(value: Any, limit: int = 120) -> str:
    """A value of unknown origin for a message: short, printable, and never by walking into it."""
    if isinstance(value, (str, bytes)):
        return repr(value[:limit]) + ("..." if len(value) > limit else "")
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if -(1 << 128) < value < 1 << 128 else "a number of many digits"
    if isinstance(value, Opaque):
        return f"{value.name[:limit]} by name"
    return f"a {type(value).__name__}"


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous tensor."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def describe_tensor(
    storage: Storage, dtype: str, offset: int, shape: Any, stride: Any, *, expanded_limit: int = 1 << 22
) -> TensorRef:
    """A view of a storage, after checking that it stays inside.

    Args:
        storage: what it is a view of.
        dtype: its element type.
        offset: elements before the first one.
        shape: tuple of sizes.
        stride: tuple of strides, elements.
        expanded_limit: bytes a tensor may be larger than its storage (a stride of zero repeats elements for
            free).

    Raises:
        Contradiction: the description does not fit itself or the storage.
        Unbuilt: elements of a kind that is not read, or repeated without measure.
    """
    if dtype not in ITEM_SIZES:
        raise Unbuilt(f"elements of type {dtype or 'unknown'} are not read")
    shape, stride = _sizes(shape, "size"), _sizes(stride, "stride")
    if len(shape) != len(stride):
        raise Contradiction(f"{len(shape)} sizes but {len(stride)} strides")
    if type(offset) is not int or offset < 0:
        raise Contradiction(f"offset {shown(offset)} is no non-negative number")
    itemsize = ITEM_SIZES[dtype]
    count = math.prod(shape)
    if count:
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if (last + 1) * itemsize > storage.nbytes:
            raise Contradiction(
                f"elements {offset} to {last} of {itemsize} bytes reach beyond a storage of "
                f"{storage.nbytes} bytes"
            )
    if count * itemsize > storage.nbytes + expanded_limit:
        raise Unbuilt(f"{count} elements repeated out of a storage of {storage.nbytes} bytes")
    return TensorRef(dtype, shape, count * itemsize, offset * itemsize, stride, storage)


def _sizes(value: Any, what: str) -> tuple[int, ...]:
    if type(value) not in (tuple, list) or len(value) > 64:
        raise Contradiction(f"{what} is {type(value).__name__} and no short tuple")
    for item in value:
        if type(item) is not int or not 0 <= item < 1 << 62:
            raise Contradiction(f"{what} holds {shown(item)}, no non-negative number")
    return tuple(value)


def walk(tree: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value that is no dict, list or tuple, with the keys that lead to it; iterative, in order.

    An `Opaque` is yielded and not entered. Trees handed out by an `Archive` have no cycles.
    """
    stack: list[tuple[tuple[Any, ...], Any]] = [((), tree)]
    while stack:
        path, value = stack.pop()
        if type(value) is dict:
            stack.extend(((*path, key), item) for key, item in reversed(value.items()))
        elif type(value) in (list, tuple):
            stack.extend(((*path, k), value[k]) for k in range(len(value) - 1, -1, -1))
        else:
            yield path, value


def module_state(module: Opaque) -> dict[str, TensorRef]:
    """The state dict of a whole pickled ``nn.Module``: parameters and buffers under dotted names.

    Empty when the object is no module. Wrappers' names (``module.``, ``_orig_mod.``) are kept, as in a state
    dict.
    """
    flat: dict[str, TensorRef] = {}
    stack: list[tuple[str, Any]] = [("", module)]
    while stack:
        prefix, value = stack.pop()
        if not isinstance(value, Opaque) or not isinstance(value.state, dict):
            continue
        skipped = value.state.get("_non_persistent_buffers_set")
        hidden = skipped if isinstance(skipped, (set, frozenset)) else set()
        for group in ("_parameters", "_buffers"):
            members = value.state.get(group)
            for name, item in members.items() if isinstance(members, dict) else ():
                if isinstance(item, TensorRef) and not (group == "_buffers" and name in hidden):
                    flat[f"{prefix}{name}"] = item
        children = value.state.get("_modules")
        if isinstance(children, dict):
            stack.extend((f"{prefix}{name}.", child) for name, child in reversed(children.items()))
    return flat


def attributes(value: Any) -> dict[str, Any]:
    """The named values in a dict or in a settings object that was pickled by its class.

    Understands plain dicts, ``argparse.Namespace`` and other objects with a ``__dict__``, subclasses of dict
    (Lightning's, mmengine's, fvcore's) and OmegaConf containers, one level deep: nested values come back as
    they are and can be handed in again. Empty when there is nothing to name.
    """
    if isinstance(value, dict):
        return {key: _unwrap(item) for key, item in value.items() if isinstance(key, str)}
    if not isinstance(value, Opaque):
        return {}
    found: dict[str, Any] = {}
    if isinstance(value.state, dict):
        content = value.state.get("_content") if value.name.startswith("omegaconf.") else value.state
        found.update(content if isinstance(content, dict) else {})
    if isinstance(value.items, dict):
        found.update(value.items)
    return {key: _unwrap(item) for key, item in found.items() if isinstance(key, str)}


def _unwrap(value: Any) -> Any:
    """An OmegaConf leaf as the value it holds."""
    if (
        isinstance(value, Opaque)
        and value.name.startswith("omegaconf.nodes.")
        and isinstance(value.state, dict)
    ):
        return value.state.get("_val")
    return value
