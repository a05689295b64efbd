"""The inert pickle reader: opcodes in, values and descriptions out; nothing is imported or called.

A pickle is a program whose instructions may import any name and call it. This reader runs the same stack
machine, but a name stays a string, and a call becomes a record of what was to be called (`Opaque`). Only the
names listed in `understood.py` are given a meaning, by functions of ours that make plain values.

The loop is our own and not `pickletools.genops`: genops copies an argument before anybody can ask how long
it claims to be, decodes numbers of any length, and needs five times as long, which a hostile pickle of many
million opcodes would turn into minutes. Opcodes and their encodings are those of CPython's `pickletools`,
protocols 0 to 5.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from dse_monitor.checkpoints.contents import Contradiction, Opaque, Unbuilt
from dse_monitor.checkpoints.understood import Members, Pairs, understood
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

    opcodes: int = 20_000_000
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

_BLOCK = 1 << 15  # opcodes between two looks at the sizes of stack, memo and memory; ours
_SLOT = 40  # bytes of a small value and of the place that refers to it
_CONTAINER = 120  # bytes of an empty container, with the collector's header
_OPAQUE = 160
_PROTOCOL = 5
_KEY_BOUND = (1 << 61) - 1  # integers from here on share hashes with small ones


class PickleCutShort(CorruptCheckpoint):
    """The bytes end before the pickle does."""


class _Stop(Exception):
    """The STOP opcode was reached."""


def read_pickle(
    data: bytes | bytearray,
    *,
    where: str,
    start: int = 0,
    persistent: Callable[[Any], Any] | None = None,
    limits: Limits = LIMITS,
) -> tuple[Any, int]:
    """Read one pickle without executing anything.

    Args:
        data: the bytes that hold it.
        where: file and record, for messages.
        start: position of its first opcode.
        persistent: gives a value to a persistent id (torch's storages); without it such ids are refused. A
            ValueError it raises becomes UnsafeCheckpoint.
        limits: what it may ask for.

    Returns:
        The value, possibly cyclic (see `tree.untangle`), and the position after the STOP opcode.

    Raises:
        PickleCutShort: the bytes end before STOP.
        UnsafeCheckpoint: it asks for more than data, or for more of it than the limits allow.
        CorruptCheckpoint: it is no well-formed pickle.
    """
    return _Machine(data, where, start, persistent, limits).run()


class _Machine:
    """Pickle's stack machine. An ``_op_*`` method gets the position of its argument, returns the next."""

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
        self.tuple_keys = 0
        self.memory = limits.memory + limits.growth * max(0, len(data) - start - limits.grows_after)

    def run(self) -> tuple[Any, int]:
        table = [getattr(self, name) for name in _METHODS]
        data = self.data
        position = self.position
        try:
            for _ in range(self.limits.opcodes // _BLOCK + 1):
                for _ in range(_BLOCK):
                    operation = table[data[position]]
                    self.position = position
                    position = operation(position + 1)
                self.look()
        except _Stop as stop:
            return stop.args[0], stop.args[1]
        except struct.error:
            raise self.cut_short("number") from None
        except IndexError:  # of the data or of the stack: tell the two apart
            if position >= len(data) or position + 1 + _ARGUMENTS.get(data[position], 0) > len(data):
                raise self.cut_short("pickle") from None
            raise self.corrupt("an opcode takes a value that is not there") from None
        raise self.unsafe(f"more than {self.limits.opcodes:,} opcodes")

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
        return UnsafeCheckpoint(
            f"{self.where} was refused at byte {self.position}: it asks for {asks}, expected a plain "
            "checkpoint. "
            "Nothing of it was executed; save the weights alone (a state dict) to have it measured"
        )

    def corrupt(self, found: str) -> CorruptCheckpoint:
        return CorruptCheckpoint(f"{self.where} is damaged at byte {self.position}: {found}; save it again")

    def cut_short(self, inside: str) -> PickleCutShort:
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
        # One character beyond the first plane makes Python store four bytes for each of them.
        width = 1 if len(raw) < 1024 or raw.isascii() else 4
        if width * len(raw) > self.limits.text:
            raise self.unsafe(
                f"a string of {len(raw):,} bytes beyond ASCII (at most {self.limits.text // 4:,})"
            )
        self.charge(_SLOT + width * len(raw))
        return str(raw, encoding, "replace")

    def add_text(self, position: int, length: int) -> int:
        end = self.span(position, length, self.limits.text, "string")
        self.stack.append(self.text(self.data[position:end]))
        return end

    def add_bytes(self, position: int, length: int) -> int:
        end = self.span(position, length, self.limits.text, "byte string")
        self.charge(_SLOT + length)
        self.stack.append(bytes(self.data[position:end]))
        return end

    def add_old_string(self, position: int, length: int) -> int:
        """A string of Python 2: text when it is ASCII, bytes otherwise."""
        end = self.add_bytes(position, length)
        if self.stack[-1].isascii():
            self.stack[-1] = self.stack[-1].decode("ascii")
        return end

    def add_integer(self, position: int, length: int) -> int:
        end = self.span(position, length, self.limits.number, "number")
        self.charge(length)
        self.stack.append(int.from_bytes(self.data[position:end], "little", signed=True))
        return end

    def pop_mark(self) -> list[Any]:
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
                self.charge(_CONTAINER)
            target = target.items
        if type(target) is not dict:
            raise self.unsafe(f"storing keys in a {_kind(target)}")
        keys = items[::2]
        for key in keys:
            if type(key) is not str:
                self.check_key(key)
        self.charge(3 * _SLOT * len(keys))
        target.update(zip(keys, items[1::2], strict=True))

    def extend(self, target: Any, items: list[Any]) -> None:
        if type(target) is Opaque and target.args is not None:
            if target.items is None:
                target.items = []
                self.charge(_CONTAINER)
            target = target.items
        if type(target) is not list:
            raise self.unsafe(f"appending to a {_kind(target)}")
        self.charge(_SLOT * len(items))
        target.extend(items)

    def members(self, items: list[Any]) -> list[Any]:
        """Items for a set, checked like keys."""
        for item in items:
            if type(item) is not str:
                self.check_key(item)
        self.charge(3 * _SLOT * len(items))
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
            self.charge(_CONTAINER)
            result: dict[Any, Any] = {}
            self.store(result, value.items)
            return result
        if type(value) is Members:
            self.charge(2 * _CONTAINER)
            return value.kind(self.members(value.items))
        self.charge(_weight(value))
        return value

    # Opcodes

    def _op_unknown(self, position: int) -> int:
        opcode = self.data[position - 1]
        if opcode in _EXTENSIONS:
            raise self.unsafe("a class by its number in a registry (EXT opcode)")
        if opcode in _OUT_OF_BAND:
            raise self.unsafe("a buffer that is kept outside of the file")
        raise self.corrupt(f"0x{opcode:02x} is no opcode")

    def _op_proto(self, position: int) -> int:
        if self.data[position] > _PROTOCOL:
            raise self.corrupt(f"pickle protocol {self.data[position]} is unknown, 0 to {_PROTOCOL} are")
        return position + 1

    def _op_frame(self, position: int) -> int:
        (length,) = _U64(self.data, position)
        self.span(position + 8, length, length, "frame")  # of any length, but it must be there
        return position + 8

    def _op_stop(self, position: int) -> int:
        raise _Stop(self.stack.pop(), position)

    def _op_mark(self, position: int) -> int:
        self.marks.append(len(self.stack))
        return position

    def _op_pop(self, position: int) -> int:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()
        return position

    def _op_pop_mark(self, position: int) -> int:
        self.pop_mark()
        return position

    def _op_dup(self, position: int) -> int:
        self.stack.append(self.stack[-1])
        return position

    def _op_none(self, position: int) -> int:
        self.stack.append(None)
        return position

    def _op_true(self, position: int) -> int:
        self.stack.append(True)
        return position

    def _op_false(self, position: int) -> int:
        self.stack.append(False)
        return position

    def _op_int_text(self, position: int) -> int:
        raw, position = self.line(position, self.limits.number, "number")
        self.stack.append({b"00": False, b"01": True}[raw] if raw in (b"00", b"01") else self.parse(int, raw))
        return position

    def _op_long_text(self, position: int) -> int:
        raw, position = self.line(position, self.limits.number, "number")
        self.stack.append(self.parse(int, raw.rstrip(b"L")))
        return position

    def _op_float_text(self, position: int) -> int:
        raw, position = self.line(position, self.limits.number, "number")
        self.stack.append(self.parse(float, raw))
        return position

    def parse(self, kind: type, raw: bytes) -> Any:
        try:
            return kind(raw)
        except ValueError:
            raise self.corrupt(f"{raw[:40]!r} is no {kind.__name__}") from None

    def _op_binint(self, position: int) -> int:
        self.stack.append(_I32(self.data, position)[0])
        return position + 4

    def _op_binint1(self, position: int) -> int:
        self.stack.append(self.data[position])
        return position + 1

    def _op_binint2(self, position: int) -> int:
        self.stack.append(_U16(self.data, position)[0])
        return position + 2

    def _op_long1(self, position: int) -> int:
        return self.add_integer(position + 1, self.data[position])

    def _op_long4(self, position: int) -> int:
        (length,) = _I32(self.data, position)
        if length < 0:
            raise self.corrupt("a number of negative length")
        return self.add_integer(position + 4, length)

    def _op_binfloat(self, position: int) -> int:
        self.stack.append(_F64(self.data, position)[0])
        return position + 8

    def _op_string_text(self, position: int) -> int:
        raw, end = self.line(position, self.limits.text, "string")
        if len(raw) < 2 or raw[:1] != raw[-1:] or raw[:1] not in (b"'", b'"'):
            raise self.corrupt("a string without quotes")
        if not _ESCAPED.fullmatch(raw, 1, len(raw) - 1):
            raise self.corrupt("a string with an escape nobody writes")
        self.charge(_SLOT + 2 * len(raw))
        decoded = raw[1:-1].decode("unicode_escape")
        self.stack.append(decoded if decoded.isascii() else decoded.encode("latin1"))
        return end

    def _op_binstring(self, position: int) -> int:
        (length,) = _U32(self.data, position)
        return self.add_old_string(position + 4, length)

    def _op_short_binstring(self, position: int) -> int:
        return self.add_old_string(position + 1, self.data[position])

    def _op_unicode_text(self, position: int) -> int:
        raw, end = self.line(position, self.limits.text, "string")
        # Lone surrogates can be written this way, and nobody could print them.
        self.stack.append(self.text(raw, "raw_unicode_escape").encode("utf-8", "replace").decode())
        return end

    def _op_short_binunicode(self, position: int) -> int:
        return self.add_text(position + 1, self.data[position])

    def _op_binunicode(self, position: int) -> int:
        return self.add_text(position + 4, _U32(self.data, position)[0])

    def _op_binunicode8(self, position: int) -> int:
        return self.add_text(position + 8, _U64(self.data, position)[0])

    def _op_short_binbytes(self, position: int) -> int:
        return self.add_bytes(position + 1, self.data[position])

    def _op_binbytes(self, position: int) -> int:
        return self.add_bytes(position + 4, _U32(self.data, position)[0])

    def _op_binbytes8(self, position: int) -> int:
        return self.add_bytes(position + 8, _U64(self.data, position)[0])

    def _op_empty_list(self, position: int) -> int:
        self.memory -= _CONTAINER
        self.stack.append([])
        return position

    def _op_empty_dict(self, position: int) -> int:
        self.memory -= _CONTAINER
        self.stack.append({})
        return position

    def _op_empty_set(self, position: int) -> int:
        self.memory -= 2 * _CONTAINER
        self.stack.append(set())
        return position

    def _op_empty_tuple(self, position: int) -> int:
        self.stack.append(())
        return position

    def _op_list(self, position: int) -> int:
        items = self.pop_mark()
        self.charge(_CONTAINER + _SLOT * len(items))
        self.stack.append(items)
        return position

    def _op_tuple(self, position: int) -> int:
        items = self.pop_mark()
        self.charge(_CONTAINER + _SLOT * len(items))
        self.stack.append(tuple(items))
        return position

    def _op_tuple1(self, position: int) -> int:
        self.memory -= _CONTAINER
        self.stack[-1] = (self.stack[-1],)
        return position

    def _op_tuple2(self, position: int) -> int:
        self.memory -= _CONTAINER
        second = self.stack.pop()
        self.stack[-1] = (self.stack[-1], second)
        return position

    def _op_tuple3(self, position: int) -> int:
        self.memory -= _CONTAINER
        third = self.stack.pop()
        second = self.stack.pop()
        self.stack[-1] = (self.stack[-1], second, third)
        return position

    def _op_dict(self, position: int) -> int:
        items = self.pop_mark()
        self.stack.append({})
        self.charge(_CONTAINER)
        self.store(self.stack[-1], items)
        return position

    def _op_append(self, position: int) -> int:
        item = self.stack.pop()
        self.extend(self.stack[-1], [item])
        return position

    def _op_appends(self, position: int) -> int:
        items = self.pop_mark()
        self.extend(self.stack[-1], items)
        return position

    def _op_setitem(self, position: int) -> int:
        value = self.stack.pop()
        key = self.stack.pop()
        self.store(self.stack[-1], [key, value])
        return position

    def _op_setitems(self, position: int) -> int:
        items = self.pop_mark()
        self.store(self.stack[-1], items)
        return position

    def _op_additems(self, position: int) -> int:
        items = self.pop_mark()
        target = self.stack[-1]
        if type(target) is set:
            target.update(self.members(items))
        else:
            self.extend(target, items)
        return position

    def _op_frozenset(self, position: int) -> int:
        self.charge(2 * _CONTAINER)
        self.stack.append(frozenset(self.members(self.pop_mark())))
        return position

    def _op_get_text(self, position: int) -> int:
        raw, position = self.line(position, self.limits.number, "number")
        self.get(self.parse(int, raw))
        return position

    def get(self, index: int) -> None:
        if not 0 <= index < len(self.memo):
            raise self.corrupt(f"value {index} is used before it was remembered")
        self.stack.append(self.memo[index])

    def _op_binget(self, position: int) -> int:
        self.stack.append(self.memo[self.data[position]])
        return position + 1

    def _op_long_binget(self, position: int) -> int:
        self.get(_U32(self.data, position)[0])
        return position + 4

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

    def _op_put_text(self, position: int) -> int:
        raw, position = self.line(position, self.limits.number, "number")
        self.put(self.parse(int, raw))
        return position

    def _op_binput(self, position: int) -> int:
        self.put(self.data[position])
        return position + 1

    def _op_long_binput(self, position: int) -> int:
        self.put(_U32(self.data, position)[0])
        return position + 4

    def _op_memoize(self, position: int) -> int:
        self.put(len(self.memo))
        return position

    def _op_global(self, position: int) -> int:
        module, position = self.line(position, self.limits.name, "name")
        name, position = self.line(position, self.limits.name, "name")
        self.name(self.text(module), self.text(name))
        return position

    def _op_stack_global(self, position: int) -> int:
        name = self.stack.pop()
        module = self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise self.corrupt("a class name that is no string")
        if len(name) + len(module) > self.limits.name:
            raise self.unsafe("a class name of several thousand characters")
        self.name(module, name)
        return position

    def _op_reduce(self, position: int) -> int:
        args = self.stack.pop()
        self.call(self.stack.pop(), args)
        return position

    def _op_newobj_ex(self, position: int) -> int:
        keywords = self.stack.pop()
        args = self.stack.pop()
        self.call(self.stack.pop(), args, keywords)
        return position

    def _op_inst(self, position: int) -> int:
        position = self._op_global(position)
        function = self.stack.pop()
        self.call(function, tuple(self.pop_mark()))
        return position

    def _op_obj(self, position: int) -> int:
        items = self.pop_mark()
        self.call(items[0], tuple(items[1:]))
        return position

    def _op_build(self, position: int) -> int:
        """Note an object's state. State of plain values (a state dict's ``_metadata``) is dropped."""
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is not Opaque:
            return position
        if target.args is None:
            raise self.unsafe(f"changing the class or function {target.name}")
        if (
            type(state) is tuple
            and len(state) == 2
            and all(part is None or type(part) is dict for part in state)
        ):
            state = {**(state[0] or {}), **(state[1] or {})}  # __dict__ and slots
            self.charge(_CONTAINER + 3 * _SLOT * len(state))
        target.state = state
        return position

    def _op_binpersid(self, position: int) -> int:
        self.persist(self.stack.pop())
        return position

    def _op_persid_text(self, position: int) -> int:
        raw, position = self.line(position, self.limits.name, "name")
        self.persist(self.text(raw))
        return position

    def persist(self, identifier: Any) -> None:
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
        return _CONTAINER + 3 * _SLOT * len(value)
    return _OPAQUE + (len(value) if isinstance(value, (bytes, str)) else 0)


def _kind(value: Any) -> str:
    if type(value) is Opaque:
        return f"class or function {value.name}" if value.args is None else value.name
    return type(value).__name__


_KEYS = {str, int, float, bytes, bool, type(None), Opaque}  # an Opaque is hashed by its identity
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_ESCAPED = re.compile(rb"""[^\\]*(?:\\(?:[\\'"abfnrtv]|x[0-9a-fA-F]{2}|[0-3][0-7]{0,2}|[0-7]{1,2})[^\\]*)*""")
_U16 = struct.Struct("<H").unpack_from
_U32 = struct.Struct("<I").unpack_from
_I32 = struct.Struct("<i").unpack_from
_U64 = struct.Struct("<Q").unpack_from
_F64 = struct.Struct(">d").unpack_from

_OPCODES = {
    b"\x80": "proto", b"\x95": "frame", b".": "stop", b"(": "mark", b"0": "pop", b"1": "pop_mark",
    b"2": "dup", b"N": "none", b"\x88": "true", b"\x89": "false", b"I": "int_text", b"L": "long_text",
    b"F": "float_text", b"J": "binint", b"K": "binint1", b"M": "binint2", b"\x8a": "long1",
    b"\x8b": "long4", b"G": "binfloat", b"S": "string_text", b"T": "binstring", b"U": "short_binstring",
    b"V": "unicode_text", b"\x8c": "short_binunicode", b"X": "binunicode", b"\x8d": "binunicode8",
    b"C": "short_binbytes", b"B": "binbytes", b"\x8e": "binbytes8", b"\x96": "binbytes8",
    b"]": "empty_list", b"}": "empty_dict", b"\x8f": "empty_set", b")": "empty_tuple", b"l": "list",
    b"t": "tuple", b"\x85": "tuple1", b"\x86": "tuple2", b"\x87": "tuple3", b"d": "dict", b"a": "append",
    b"e": "appends", b"s": "setitem", b"u": "setitems", b"\x90": "additems", b"\x91": "frozenset",
    b"g": "get_text", b"h": "binget", b"j": "long_binget", b"p": "put_text", b"q": "binput",
    b"r": "long_binput", b"\x94": "memoize", b"c": "global", b"\x93": "stack_global", b"R": "reduce",
    b"\x81": "reduce", b"\x92": "newobj_ex", b"i": "inst", b"o": "obj", b"b": "build", b"Q": "binpersid",
    b"P": "persid_text",
}  # fmt: skip
_METHODS = ["_op_" + _OPCODES.get(bytes([code]), "unknown") for code in range(256)]
_EXTENSIONS = {0x82, 0x83, 0x84}  # EXT1, EXT2, EXT4
_OUT_OF_BAND = {0x97, 0x98}  # NEXT_BUFFER, READONLY_BUFFER
_ARGUMENTS = {0x80: 1, ord("K"): 1, ord("h"): 1, ord("q"): 1, 0x8A: 1, ord("U"): 1, 0x8C: 1, ord("C"): 1}
