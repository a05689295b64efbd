"""Pickle's opcodes that push one plain value: constants, numbers, strings and bytes."""

from __future__ import annotations

import re
import struct

from dse_monitor.checkpoints.reading.pickle_stack import SLOT, PickleStack

U16 = struct.Struct("<H").unpack_from
U32 = struct.Struct("<I").unpack_from
I32 = struct.Struct("<i").unpack_from
U64 = struct.Struct("<Q").unpack_from
F64 = struct.Struct(">d").unpack_from

_ESCAPED = re.compile(rb"""[^\\]*(?:\\(?:[\\'"abfnrtv]|x[0-9a-fA-F]{2}|[0-3][0-7]{0,2}|[0-7]{1,2})[^\\]*)*""")


class PlainValues(PickleStack):
    """Those opcodes. An ``_op_*`` method gets the position of its argument, returns the next."""

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

    def _op_binint(self, position: int) -> int:
        self.stack.append(I32(self.data, position)[0])
        return position + 4

    def _op_binint1(self, position: int) -> int:
        self.stack.append(self.data[position])
        return position + 1

    def _op_binint2(self, position: int) -> int:
        self.stack.append(U16(self.data, position)[0])
        return position + 2

    def _op_long1(self, position: int) -> int:
        return self.add_integer(position + 1, self.data[position])

    def _op_long4(self, position: int) -> int:
        (length,) = I32(self.data, position)
        if length < 0:
            raise self.corrupt("a number of negative length")
        return self.add_integer(position + 4, length)

    def _op_binfloat(self, position: int) -> int:
        self.stack.append(F64(self.data, position)[0])
        return position + 8

    def _op_string_text(self, position: int) -> int:
        raw, end = self.line(position, self.limits.text, "string")
        if len(raw) < 2 or raw[:1] != raw[-1:] or raw[:1] not in (b"'", b'"'):
            raise self.corrupt("a string without quotes")
        if not _ESCAPED.fullmatch(raw, 1, len(raw) - 1):
            raise self.corrupt("a string with an escape nobody writes")
        self.charge(SLOT + 2 * len(raw))
        decoded = raw[1:-1].decode("unicode_escape")
        self.stack.append(decoded if decoded.isascii() else decoded.encode("latin1"))
        return end

    def _op_binstring(self, position: int) -> int:
        (length,) = U32(self.data, position)
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
        return self.add_text(position + 4, U32(self.data, position)[0])

    def _op_binunicode8(self, position: int) -> int:
        return self.add_text(position + 8, U64(self.data, position)[0])

    def _op_short_binbytes(self, position: int) -> int:
        return self.add_bytes(position + 1, self.data[position])

    def _op_binbytes(self, position: int) -> int:
        return self.add_bytes(position + 4, U32(self.data, position)[0])

    def _op_binbytes8(self, position: int) -> int:
        return self.add_bytes(position + 8, U64(self.data, position)[0])
