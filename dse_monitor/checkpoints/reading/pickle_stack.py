"""What a pickle may do: the values on its stack, what they may be put into, and how much of everything.

The opcodes that use these are in `pickle_plain.py` and `pickle_reader.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dse_monitor.checkpoints.reading.contents import Contradiction, Opaque, Unbuilt
from dse_monitor.checkpoints.reading.understood import Members, Pairs, understood
from dse_monitor.errors import CorruptCheckpoint, UnsafeCheckpoint

MEGABYTE = 1 << 20


class Limits(NamedTuple):
    """What one pickle may ask for; ours, far above the largest checkpoints seen and far below what hurts.

    Attributes:
        opcodes: instructions run.
        stack: values waiting on the stack, and open marks.
        memo: values remembered for later use.
        text: bytes of one string.
        number: bytes of one integer.
        name: bytes of one module or class name.
        tuple_keys: keys that are tuples, in all dicts together; their hashes can be made to collide.
        memory: estimated bytes of all values together, for pickles up to ``grows_after`` bytes; longer ones
            may use ``growth`` bytes more for each byte.
    """

    opcodes: int = 3_000_000
    stack: int = 1_000_000
    memo: int = 4_000_000
    text: int = 64 * MEGABYTE
    number: int = 4096
    name: int = 4096
    tuple_keys: int = 20_000
    memory: int = 160 * MEGABYTE
    grows_after: int = 16 * MEGABYTE
    growth: int = 8


LIMITS = Limits()

SLOT = 40  # bytes of a small value and of the place that refers to it
CONTAINER = 120  # bytes of an empty container, with the collector's header
_OPAQUE = 160
_KEY_BOUND = (1 << 61) - 1  # integers from here on share hashes with small ones


class PickleCutShort(CorruptCheckpoint):
    """The bytes end before the pickle does."""


_KEYS = {str, int, float, bytes, bool, type(None), Opaque}  # an Opaque is hashed by its identity
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class PickleStack:
    """Stack, marks and memo of one pickle, with the checks made before a value is created or changed."""

    def __init__(
        self,
        data: bytes | bytearray,
        where: str,
        start: int,
        persistent: Callable[[Any], Any] | None,
        limits: Limits,
    ) -> None:
        self.data = data
        self.where = where
        self.position = start
        self.persistent = persistent
        self.limits = limits
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []
        self.globals: dict[str, Opaque] = {}
        self.written: dict[tuple[bytes, bytes], Opaque] = {}  # the same, before they are decoded
        self.tuple_keys = 0
        self.memory = limits.memory + limits.growth * max(0, len(data) - start - limits.grows_after)

    # What may not be exceeded

    def look(self) -> None:
        """Compare the sizes that single opcodes do not check with their limits."""
        if len(self.stack) > self.limits.stack or len(self.marks) > self.limits.stack:
            raise self.unsafe(f"more than {self.limits.stack:,} values waiting on its stack")
        if self.memory < 0:
            raise self.unsafe("values that would fill the memory")

    def charge(self, nbytes: int) -> None:
        """Count memory; large pieces are refused at once, small ones at the next look."""
        self.memory -= nbytes
        if nbytes > MEGABYTE and self.memory < 0:
            raise self.unsafe("values that would fill the memory")

    def unsafe(self, asks: str) -> UnsafeCheckpoint:
        """The error for a pickle that asks for more than data, to be raised."""
        return UnsafeCheckpoint(
            f"{self.where} was refused at byte {self.position}: it asks for {asks}, expected a plain "
            "checkpoint. "
            "Nothing of it was executed; save the weights alone (a state dict) to have it measured"
        )

    def corrupt(self, found: str) -> CorruptCheckpoint:
        """The error for a pickle no writer makes, to be raised."""
        return CorruptCheckpoint(f"{self.where} is damaged at byte {self.position}: {found}; save it again")

    def cut_short(self, inside: str) -> PickleCutShort:
        """The error for bytes that end inside something, to be raised."""
        return PickleCutShort(
            f"{self.where} ends at byte {len(self.data)}, inside a {inside}; the file is cut short"
        )

    # Arguments

    def span(self, position: int, length: int, limit: int, what: str) -> int:
        """End of a variable argument, after checking what it claims."""
        if length > limit:
            raise self.unsafe(f"a {what} of {length:,} bytes (at most {limit:,})")
        end = position + length
        if end > len(self.data):
            raise self.cut_short(what)
        return end

    def line(self, position: int, limit: int, what: str) -> tuple[bytes, int]:
        """A text argument up to its newline."""
        end = self.data.find(b"\n", position, position + limit + 1)
        if end < 0:
            self.span(position, min(limit, len(self.data) - position) + 1, limit, what)
        return bytes(self.data[position:end]), end + 1

    def text(self, raw: bytes | bytearray, encoding: str = "utf-8") -> str:
        """Decoded text; never fails, for a message must be able to show it."""
        # One character beyond the first plane makes Python store four bytes for each of them.
        width = 1 if len(raw) < 1024 or raw.isascii() else 4
        if width * len(raw) > self.limits.text:
            raise self.unsafe(
                f"a string of {len(raw):,} bytes beyond ASCII (at most {self.limits.text // 4:,})"
            )
        self.charge(SLOT + width * len(raw))
        return str(raw, encoding, "replace")

    def add_text(self, position: int, length: int) -> int:
        """Push a string of the given length."""
        end = self.span(position, length, self.limits.text, "string")
        self.stack.append(self.text(self.data[position:end]))
        return end

    def add_bytes(self, position: int, length: int) -> int:
        """Push bytes of the given length."""
        end = self.span(position, length, self.limits.text, "byte string")
        self.charge(SLOT + length)
        self.stack.append(bytes(self.data[position:end]))
        return end

    def add_old_string(self, position: int, length: int) -> int:
        """A string of Python 2: text when it is ASCII, bytes otherwise."""
        end = self.add_bytes(position, length)
        if self.stack[-1].isascii():
            self.stack[-1] = self.stack[-1].decode("ascii")
        return end

    def add_integer(self, position: int, length: int) -> int:
        """Push a little-endian integer of the given length."""
        end = self.span(position, length, self.limits.number, "number")
        self.charge(length)
        self.stack.append(int.from_bytes(self.data[position:end], "little", signed=True))
        return end

    def pop_mark(self) -> list[Any]:
        """Take everything above the last mark."""
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    # Containers

    def check_key(self, key: Any) -> None:
        """Keys must be plain: hashing something nested recurses in C until the process dies."""
        kind = type(key)
        if kind is int:
            if not -_KEY_BOUND < key < _KEY_BOUND:
                raise self.unsafe("a dict key that is an integer of more than 61 bits")
        elif kind is tuple:
            self.tuple_keys += 1
            if self.tuple_keys > self.limits.tuple_keys or len(key) > 16:
                raise self.unsafe(
                    f"more than {self.limits.tuple_keys:,} dict keys that are tuples, or long ones"
                )
            for item in key:
                if type(item) is tuple:
                    raise self.unsafe("a dict key that is a tuple of tuples")
                self.check_key(item)
        elif kind not in _KEYS:
            raise self.unsafe(f"a dict key that is a {kind.__name__}")

    def store(self, target: Any, items: list[Any]) -> None:
        """SETITEM and SETITEMS, for dicts only: real unpicklers were broken into by letting others in."""
        if len(items) % 2:
            raise self.corrupt("a key without a value")
        if type(target) is Opaque and target.args is not None:
            if target.items is None:
                target.items = {}
                self.charge(CONTAINER)
            target = target.items
        if type(target) is not dict:
            raise self.unsafe(f"storing keys in a {_kind(target)}")
        keys = items[::2]
        for key in keys:
            if type(key) is not str:
                self.check_key(key)
        self.charge(3 * SLOT * len(keys))
        target.update(zip(keys, items[1::2], strict=True))

    def extend(self, target: Any, items: list[Any]) -> None:
        """APPEND and APPENDS, for lists and for objects, which only note their items."""
        if type(target) is Opaque and target.args is not None:
            if target.items is None:
                target.items = []
                self.charge(CONTAINER)
            target = target.items
        if type(target) is not list:
            raise self.unsafe(f"appending to a {_kind(target)}")
        self.charge(SLOT * len(items))
        target.extend(items)

    def members(self, items: list[Any]) -> list[Any]:
        """Items for a set, checked like keys."""
        for item in items:
            if type(item) is not str:
                self.check_key(item)
        self.charge(3 * SLOT * len(items))
        return items

    # Objects

    def name(self, module: str, name: str) -> None:
        """A class or function: its name is all we want of it."""
        qualified = f"{_OLD_MODULES.get(module, module)}.{name}"
        if not qualified.isprintable():
            qualified = ascii(qualified)
        found = self.globals.get(qualified)
        if found is None:
            found = self.globals[qualified] = Opaque(qualified)
            self.charge(_OPAQUE + len(qualified))
        self.stack.append(found)

    def call(self, function: Any, args: Any, keywords: Any = None) -> None:
        """REDUCE, NEWOBJ, NEWOBJ_EX, INST and OBJ: record what was to be called."""
        if type(function) is not Opaque:
            raise self.unsafe(f"calling a {type(function).__name__}")
        if type(args) is not tuple:
            raise self.corrupt(f"a call with a {type(args).__name__} for arguments")
        self.charge(_OPAQUE)
        if function.args is not None:
            self.stack.append(Opaque(f"call of {function.name}"[: self.limits.name], args))
            return
        rule = understood(function.name)
        note = ""
        if rule is not None and not keywords:
            try:
                value = rule(*args)
            except Contradiction as error:
                raise self.corrupt(str(error)) from None
            except (Unbuilt, TypeError, ValueError, LookupError) as error:
                note = f"not built: {error}"
            else:
                self.stack.append(self.made(value))
                return
        self.stack.append(Opaque(function.name, args, keywords or None, note=note))

    def made(self, value: Any) -> Any:
        """The value of a rule; dicts and sets are filled here, their keys checked before they are hashed."""
        if type(value) is Pairs:
            self.charge(CONTAINER)
            result: dict[Any, Any] = {}
            self.store(result, value.items)
            return result
        if type(value) is Members:
            self.charge(2 * CONTAINER)
            return value.kind(self.members(value.items))
        self.charge(_weight(value))
        return value

    def parse(self, kind: type, raw: bytes) -> Any:
        """A number written as text."""
        try:
            return kind(raw)
        except ValueError:
            raise self.corrupt(f"{raw[:40]!r} is no {kind.__name__}") from None

    def get(self, index: int) -> None:
        """Push a remembered value."""
        if not 0 <= index < len(self.memo):
            raise self.corrupt(f"value {index} is used before it was remembered")
        self.stack.append(self.memo[index])

    def put(self, index: int) -> None:
        """Remember the top of the stack. Writers count up from zero: a list serves and stays small."""
        memo = self.memo
        if index == len(memo) and index < self.limits.memo:
            memo.append(self.stack[-1])
            return
        if not 0 <= index < self.limits.memo:
            raise self.unsafe(f"more than {self.limits.memo:,} remembered values")
        if index > len(memo):
            memo.extend([None] * (index + 1 - len(memo)))
        memo[index] = self.stack[-1]

    def persist(self, identifier: Any) -> None:
        """Push what a persistent id stands for."""
        if self.persistent is None:
            raise self.unsafe("a value by persistent id, which only torch's own files have")
        self.charge(_OPAQUE)
        try:
            self.stack.append(self.persistent(identifier))
        except ValueError as error:
            raise self.unsafe(f"a value by persistent id, but {error}") from None


def _weight(value: Any) -> int:
    """Estimated bytes of a value that a rule has made."""
    if isinstance(value, (dict, list, set, frozenset, tuple)):
        return CONTAINER + 3 * SLOT * len(value)
    return _OPAQUE + (len(value) if isinstance(value, (bytes, str)) else 0)


def _kind(value: Any) -> str:
    if type(value) is Opaque:
        return f"class or function {value.name}" if value.args is None else value.name
    return type(value).__name__
