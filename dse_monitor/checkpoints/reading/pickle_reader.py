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

import struct
from collections.abc import Callable
from typing import Any

from dse_monitor.checkpoints.reading.contents import Opaque
from dse_monitor.checkpoints.reading.pickle_plain import U32, U64, PlainValues
from dse_monitor.checkpoints.reading.pickle_stack import CONTAINER, LIMITS, SLOT, Limits, PickleCutShort

__all__ = ["LIMITS", "Limits", "PickleCutShort", "read_pickle"]


_BLOCK = 1 << 15  # opcodes between two looks at the sizes of stack, memo and memory; ours
_PROTOCOL = 5


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


class _Machine(PlainValues):
    """Pickle's stack machine: what it does besides pushing plain values, and the loop."""

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
        (length,) = U64(self.data, position)
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

    def _op_empty_list(self, position: int) -> int:
        self.memory -= CONTAINER
        self.stack.append([])
        return position

    def _op_empty_dict(self, position: int) -> int:
        self.memory -= CONTAINER
        self.stack.append({})
        return position

    def _op_empty_set(self, position: int) -> int:
        self.memory -= 2 * CONTAINER
        self.stack.append(set())
        return position

    def _op_empty_tuple(self, position: int) -> int:
        self.stack.append(())
        return position

    def _op_list(self, position: int) -> int:
        items = self.pop_mark()
        self.charge(CONTAINER + SLOT * len(items))
        self.stack.append(items)
        return position

    def _op_tuple(self, position: int) -> int:
        items = self.pop_mark()
        self.charge(CONTAINER + SLOT * len(items))
        self.stack.append(tuple(items))
        return position

    def _op_tuple1(self, position: int) -> int:
        self.memory -= CONTAINER
        self.stack[-1] = (self.stack[-1],)
        return position

    def _op_tuple2(self, position: int) -> int:
        self.memory -= CONTAINER
        second = self.stack.pop()
        self.stack[-1] = (self.stack[-1], second)
        return position

    def _op_tuple3(self, position: int) -> int:
        self.memory -= CONTAINER
        third = self.stack.pop()
        second = self.stack.pop()
        self.stack[-1] = (self.stack[-1], second, third)
        return position

    def _op_dict(self, position: int) -> int:
        items = self.pop_mark()
        self.stack.append({})
        self.charge(CONTAINER)
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
        self.charge(2 * CONTAINER)
        self.stack.append(frozenset(self.members(self.pop_mark())))
        return position

    def _op_get_text(self, position: int) -> int:
        raw, position = self.line(position, self.limits.number, "number")
        self.get(self.parse(int, raw))
        return position

    def _op_binget(self, position: int) -> int:
        self.stack.append(self.memo[self.data[position]])
        return position + 1

    def _op_long_binget(self, position: int) -> int:
        self.get(U32(self.data, position)[0])
        return position + 4

    def _op_put_text(self, position: int) -> int:
        raw, position = self.line(position, self.limits.number, "number")
        self.put(self.parse(int, raw))
        return position

    def _op_binput(self, position: int) -> int:
        self.put(self.data[position])
        return position + 1

    def _op_long_binput(self, position: int) -> int:
        self.put(U32(self.data, position)[0])
        return position + 4

    def _op_memoize(self, position: int) -> int:
        self.put(len(self.memo))
        return position

    def _op_global(self, position: int) -> int:
        module, position = self.line(position, self.limits.name, "name")
        name, position = self.line(position, self.limits.name, "name")
        known = self.written.get((module, name))
        if known is not None:
            self.stack.append(known)
            return position
        self.name(self.text(module), self.text(name))
        self.charge(CONTAINER + 2 * SLOT + len(module) + len(name))
        self.written[module, name] = self.stack[-1]
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
            self.charge(CONTAINER + 3 * SLOT * len(state))
        target.state = state
        return position

    def _op_binpersid(self, position: int) -> int:
        self.persist(self.stack.pop())
        return position

    def _op_persid_text(self, position: int) -> int:
        raw, position = self.line(position, self.limits.name, "name")
        self.persist(self.text(raw))
        return position


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
