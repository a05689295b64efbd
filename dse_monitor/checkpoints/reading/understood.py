"""The names a checkpoint may use with a meaning, and their meaning: plain values made by our own functions.

Everything else a pickle names becomes an `Opaque`. Names are compared as text; none of them is ever imported.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from dse_monitor.checkpoints.reading.contents import (
    ITEM_SIZES,
    Contradiction,
    Opaque,
    Storage,
    TensorRef,
    Unbuilt,
    describe_tensor,
    row_major,
    shown,
)

STORAGE_TYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "",
}  # fmt: skip
QUANTISED_STORAGES = {
    "QUInt8Storage": 1,
    "QInt8Storage": 1,
    "QInt32Storage": 4,
    "QUInt4x2Storage": 1,
    "QUInt2x4Storage": 1,
}
OLD_DTYPES = {
    "float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32",
    "short": "int16", "cfloat": "complex64", "cdouble": "complex128", "chalf": "complex32",
}  # fmt: skip
MAX_NUMPY_TEXT = 1 << 16  # bytes of a NumPy string scalar; ours


class Pairs(NamedTuple):
    """A dict to be made: keys and values in turn. The reader checks the keys before it hashes them."""

    items: list[Any]


class Members(NamedTuple):
    """A set to be made of these; the reader checks them first."""

    items: list[Any]
    kind: type


def understood(name: str) -> Callable[..., Any] | None:
    """The meaning of a qualified name that is called, or None."""
    return _RULES.get(name)


def dtype_of(value: Any) -> str:
    """``torch.float32`` as "float32"; anything else is refused as Unbuilt."""
    if isinstance(value, Opaque) and value.args is None and value.name.startswith("torch."):
        name = value.name.removeprefix("torch.")
        name = OLD_DTYPES.get(name, name)
        if name in ITEM_SIZES:
            return name
    raise Unbuilt(f"elements of type {getattr(value, 'name', type(value).__name__)}")


def storage_type(value: Any) -> tuple[str, int]:
    """Element type and bytes per element of a storage class; an untyped one counts bytes.

    Raises:
        ValueError: no storage class of torch.
    """
    if isinstance(value, Opaque) and value.args is None:
        package, _, name = value.name.rpartition(".")
        if package in ("torch", "torch.cuda", "torch.storage"):
            if name in STORAGE_TYPES:
                dtype = STORAGE_TYPES[name]
                return dtype, ITEM_SIZES.get(dtype, 1)
            if name in QUANTISED_STORAGES:
                return name, QUANTISED_STORAGES[name]
    raise ValueError(f"{shown(value)} is no storage class of torch")


# torch


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> TensorRef:
    if not isinstance(storage, Storage):
        raise Unbuilt(f"a tensor over {type(storage).__name__}")
    return describe_tensor(storage, storage.dtype, offset, shape, stride)


def _tensor_v2(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> TensorRef:
    _plain_view(metadata)
    return _tensor(storage, offset, shape, stride)


def _tensor_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> TensorRef:
    _plain_view(metadata)
    if not isinstance(storage, Storage):
        raise Unbuilt(f"a tensor over {type(storage).__name__}")
    return describe_tensor(storage, dtype_of(dtype), offset, shape, stride)


def _plain_view(metadata: Any) -> None:
    """A conjugated or negated view holds other numbers than its bytes say."""
    if isinstance(metadata, dict) and any(metadata.get(key) for key in ("conj", "neg")):
        raise Unbuilt("a conjugated or negated view")


def _first(value: Any, *_: Any) -> Any:
    if not isinstance(value, (TensorRef, Opaque)):
        raise Unbuilt(f"a parameter over {type(value).__name__}")
    return value


def _from_type(function: Any, kind: Any, args: Any, *state: Any) -> Any:
    """A tensor subclass: its plain tensor where it has one (class and attributes are dropped)."""
    name = function.name if isinstance(function, Opaque) and function.args is None else ""
    if name not in _TENSORS or not isinstance(args, tuple):
        raise Unbuilt(f"a tensor subclass {getattr(kind, 'name', '')} without plain storage")
    return _TENSORS[name](*args)


def _from_device(data: Any, dtype: Any, device: Any, grad: Any) -> TensorRef:
    """Tensors of devices without storages are written as an array or a tensor in main memory."""
    value = finish(data) if isinstance(data, Opaque) else data
    if not isinstance(value, TensorRef) or value.dtype != dtype_of(dtype):
        raise Unbuilt("a tensor out of values of another element type")
    return value


def _not_plain(what: str) -> Callable[..., Any]:
    def rule(*args: Any) -> Any:
        raise Unbuilt(what)

    return rule


def _size(items: Any = ()) -> tuple[Any, ...]:
    if type(items) not in (tuple, list):
        raise Unbuilt("a size that is no tuple")
    return tuple(items)


# Python


def _pairs(items: Any = ()) -> Pairs:
    if type(items) is dict:
        return Pairs([part for pair in items.items() for part in pair])
    if type(items) not in (list, tuple) or any(
        type(pair) not in (list, tuple) or len(pair) != 2 for pair in items
    ):
        raise Unbuilt("a dict out of something other than pairs")
    return Pairs([part for pair in items for part in pair])


def _defaultdict(factory: Any = None, items: Any = ()) -> Pairs:
    return _pairs(items)


def _list(items: Any = ()) -> list[Any]:
    if type(items) not in (list, tuple):
        raise Unbuilt(f"a list out of {type(items).__name__}")
    return list(items)


def _set(items: Any = ()) -> Members:
    return Members(_list(items), set)


def _frozenset(items: Any = ()) -> Members:
    return Members(_list(items), frozenset)


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocols 0 to 2 write bytes."""
    if type(text) is bytes:
        return text
    if type(text) is not str or encoding not in ("latin1", "latin-1", "iso-8859-1"):
        raise Unbuilt(f"text in the encoding {shown(encoding)}")
    return text.encode("latin1")


def _bytes(data: Any = b"", encoding: Any = "latin1") -> bytes:
    if type(data) in (bytes, str):
        return _encode(data, encoding)
    raise Unbuilt(f"bytes out of {type(data).__name__}")


def _complex(real: Any, imaginary: Any = 0.0) -> complex:
    if type(real) not in (int, float) or type(imaginary) not in (int, float):
        raise Unbuilt("a complex number out of other things")
    return complex(real, imaginary)


def _reconstructor(kind: Any, base: Any, state: Any) -> Opaque:
    """How protocols 0 and 1 write objects: class, built-in base class, and that base's value."""
    if not isinstance(kind, Opaque) or kind.args is not None:
        raise Unbuilt("an object without a class")
    return Opaque(kind.name, (), items=state if type(state) in (dict, list) else None)


# NumPy


def _dtype(code: Any, *_: Any) -> Opaque:
    if type(code) is bytes:
        code = code.decode("latin1")
    if type(code) is not str or len(code) > 16:
        raise Unbuilt("an element type without a name")
    return Opaque("numpy.dtype", (code,))


def _numpy_type(value: Any) -> tuple[str, int, str]:
    """Kind, bytes per element and byte order of a pickled dtype."""
    if not (
        isinstance(value, Opaque)
        and value.name == "numpy.dtype"
        and value.args
        and type(value.args[0]) is str
    ):
        raise Unbuilt("an element type without a name")
    code = value.args[0]
    order = "<"
    if type(value.state) is tuple and len(value.state) > 1:  # version, byte order, ...
        order = value.state[1].decode("latin1") if type(value.state[1]) is bytes else value.state[1]
    if code[:1] in ("<", ">", "|", "="):
        order, code = code[0], code[1:]
    kind, size = code[:1], code[1:]
    if not size.isascii() or not size.isdigit() or order not in ("<", ">", "|", "="):
        raise Unbuilt(f"elements of NumPy type {shown(code)}")
    return kind, int(size), ">" if order == ">" else "<"


_SCALARS = {
    ("f", 2): "e", ("f", 4): "f", ("f", 8): "d", ("b", 1): "?", ("i", 1): "b", ("i", 2): "h",
    ("i", 4): "i", ("i", 8): "q", ("u", 1): "B", ("u", 2): "H", ("u", 4): "I", ("u", 8): "Q",
    ("c", 8): "ff", ("c", 16): "dd",
}  # fmt: skip
_NUMPY_TENSORS = {
    ("f", 2): "float16", ("f", 4): "float32", ("f", 8): "float64", ("b", 1): "bool", ("i", 1): "int8",
    ("i", 2): "int16", ("i", 4): "int32", ("i", 8): "int64", ("u", 1): "uint8", ("u", 2): "uint16",
    ("u", 4): "uint32", ("u", 8): "uint64", ("c", 8): "complex64", ("c", 16): "complex128",
}  # fmt: skip


def _numpy_scalar(dtype: Any, data: Any = None) -> Any:
    kind, size, order = _numpy_type(dtype)
    raw = _encode(data)
    if kind in "US" and len(raw) <= MAX_NUMPY_TEXT:
        if kind == "S":
            return raw.rstrip(b"\0")
        return raw.decode("utf-32-be" if order == ">" else "utf-32-le").rstrip("\0")
    if (kind, size) not in _SCALARS or len(raw) != size:
        raise Unbuilt(f"a number of NumPy type {kind}{size} in {len(raw)} bytes")
    parts = struct.unpack(order + _SCALARS[kind, size], raw)
    return complex(*parts) if kind == "c" else parts[0]


def _array(kind: Any = None, *_: Any) -> Opaque:
    if not isinstance(kind, Opaque) or kind.name != "numpy.ndarray":
        raise Unbuilt("a subclass of NumPy's array")
    return Opaque("numpy.ndarray", ())


def finish(value: Opaque) -> Any:
    """A record whose meaning is known only once its state is (NumPy's arrays); others stay as they are."""
    if value.name != "numpy.ndarray" or value.args is None or value.state is None:
        return value
    try:
        return _array_of_state(value.state)
    except (Unbuilt, Contradiction, TypeError, ValueError) as error:
        value.note = f"not built: {error}"
        return value


def _array_of_state(state: Any) -> TensorRef:
    """An array out of its state: version, shape, element type, whether in Fortran order, bytes."""
    *_, shape, dtype, fortran, data = state
    if type(data) not in (bytes, str):
        raise Unbuilt("an array of objects")
    return _array_of(shape, dtype, bool(fortran), _encode(data))


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> TensorRef:
    """How protocol 5 writes arrays."""
    if type(data) is not bytes:
        raise Unbuilt("an array outside of the pickle")
    return _array_of(shape, dtype, order == "F", data)


def _array_of(shape: Any, dtype: Any, fortran: bool, data: bytes) -> TensorRef:
    kind, size, order = _numpy_type(dtype)
    if (kind, size) not in _NUMPY_TENSORS:
        raise Unbuilt(f"an array of NumPy type {kind}{size}")
    name = _NUMPY_TENSORS[kind, size]
    if type(shape) is not tuple or any(type(n) is not int or n < 0 for n in shape):
        raise Unbuilt("an array without a shape")
    stride = tuple(reversed(row_major(shape[::-1]))) if fortran else row_major(shape)
    ref = describe_tensor(
        Storage(name, len(data), inline=data, big_endian=order == ">"), name, 0, shape, stride
    )
    if ref.nbytes != len(data):
        raise Unbuilt(f"an array of {ref.nbytes} bytes in {len(data)}")
    return ref


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
}
_RULES: dict[str, Callable[..., Any]] = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type": _from_type,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.tensor._rebuild_from_type_v2": _from_type,
    "torch._utils._rebuild_device_tensor_from_numpy": _from_device,
    "torch._utils._rebuild_xla_tensor": _from_device,
    "torch._utils._rebuild_qtensor": _not_plain("a quantised tensor"),
    "torch._utils._rebuild_sparse_tensor": _not_plain("a sparse tensor"),
    "torch._utils._rebuild_sparse_csr_tensor": _not_plain("a sparse tensor"),
    "torch._utils._rebuild_nested_tensor": _not_plain("a nested tensor"),
    "torch._utils._rebuild_wrapper_subclass": _not_plain(
        "a tensor subclass that wraps others, often one rank's part"
    ),
    "torch._utils._rebuild_meta_tensor_no_storage": _not_plain(
        "a tensor on the meta device, which has no numbers"
    ),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _from_device,
    "torch.Size": _size,
    "collections.OrderedDict": _pairs,
    "collections.defaultdict": _defaultdict,
    "collections.Counter": _pairs,
    "builtins.dict": _pairs,
    "builtins.list": _list,
    "builtins.set": _set,
    "builtins.frozenset": _frozenset,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "builtins.complex": _complex,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _reconstructor,
    "numpy.dtype": _dtype,
}
for _package in ("numpy.core", "numpy._core"):
    _RULES[f"{_package}.multiarray.scalar"] = _numpy_scalar
    _RULES[f"{_package}.multiarray._reconstruct"] = _array
    _RULES[f"{_package}.numeric._frombuffer"] = _from_buffer
