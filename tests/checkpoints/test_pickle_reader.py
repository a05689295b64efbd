"""The inert reader gives the values pickle would give, for plain ones, and descriptions for the rest."""

import argparse
import collections
import datetime
import decimal
import math
import pickle
import random
import struct
import sys

import numpy as np
import pytest

from dse_monitor.checkpoints.reading.contents import Opaque, TensorRef, attributes, walk
from dse_monitor.checkpoints.reading.pickle_reader import LIMITS, PickleCutShort, read_pickle
from dse_monitor.checkpoints.reading.tree import MAX_DEPTH, untangle
from dse_monitor.errors import CorruptCheckpoint, UnsafeCheckpoint

pytestmark = pytest.mark.fast

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def read(data: bytes, **options):
    value, end = read_pickle(data, where="here", **options)
    assert end == len(data)
    return untangle(value, "here")[0]


PLAIN = {
    "constants": [None, True, False],
    "small numbers": [0, 1, -1, 255, 256, 65535, 65536, -128, -32769, 2**31 - 1, -(2**31), 2**31],
    "large numbers": [2**63, -(2**63), 2**64, 10**300, -(10**300), 2**2040, 2**2048],
    "floats": [0.0, -0.0, 1.5, 1e-300, math.inf, -math.inf],
    "text": ["", "a", "grüße", "\U0001f600" * 70, "x" * 300, "line\nbreak", "back\\slash"],
    "bytes": [b"", b"\x00\xff", bytes(range(256)), b"x" * 300],
    "containers": {
        "a": [1, [2, []]],
        "b": (),
        "c": (1,),
        "d": (1, 2),
        "e": (1, 2, 3),
        "f": (1, 2, 3, 4),
        "g": {},
    },
    "keys": {1: "a", -5: "b", 1.5: "c", None: "d", False: "e", b"k": "f", ("a", 1): "g"},
    "sets": [set(), {1, 2}, {"a"}, frozenset({3})],
    "shared": (lambda part: [part, part, {"again": part}])([1, 2]),
    "random state": random.Random(0).getstate(),
    "complex": complex(1, -2),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", PLAIN)
def test_plain_values_come_back_as_pickle_gives_them(kind, protocol):
    value = PLAIN[kind]
    assert read(pickle.dumps(value, protocol)) == value
    assert repr(read(pickle.dumps(value, protocol))) == repr(value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nan_and_bytearray_survive(protocol):
    nan, data = read(pickle.dumps([math.nan, bytearray(b"ab")], protocol))
    assert math.isnan(nan)
    assert data == b"ab"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_dict_types_become_dicts(protocol):
    value = [
        collections.OrderedDict(a=1, b=2),
        collections.defaultdict(list, {"a": [1]}),
        collections.Counter("aab"),
    ]
    assert read(pickle.dumps(value, protocol)) == [{"a": 1, "b": 2}, {"a": [1]}, {"a": 2, "b": 1}]


def test_attributes_of_a_state_dict_are_dropped():
    value = collections.OrderedDict(a=1)
    value._metadata = {"version": 1}
    assert read(pickle.dumps(value, 2)) == {"a": 1}


NUMPY_SCALARS = [
    np.float64(0.1), np.float32(0.1), np.float16(0.5), np.int64(-7), np.int32(7), np.int16(-3), np.int8(-1),
    np.uint8(200), np.uint16(60000), np.uint32(2**32 - 1), np.uint64(2**64 - 1), np.bool_(True),
    np.complex64(1 + 2j), np.complex128(3j), np.str_("héllo"), np.bytes_(b"ab"),
]  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", NUMPY_SCALARS, ids=lambda value: type(value).__name__)
def test_numpy_scalars_become_python_numbers(value, protocol):
    found = read(pickle.dumps(value, protocol))
    assert type(found) in (int, float, bool, complex, str, bytes)
    assert found == value.item()


def test_numpy_scalar_in_old_module_and_big_endian():
    big = pickle.dumps(np.float64(2.5), 2).replace(b"numpy._core", b"numpy.core").replace(b"<", b">")
    packed = struct.pack("<d", 2.5).decode("latin1").encode()
    assert packed in big
    assert read(big.replace(packed, struct.pack(">d", 2.5).decode("latin1").encode())) == 2.5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_array_is_described_as_a_tensor(protocol):
    found = read(pickle.dumps({"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, protocol))["a"]
    assert isinstance(found, TensorRef)
    assert (found.dtype, found.shape, found.nbytes) == ("float32", (2, 3), 24)


def test_array_of_objects_is_left_as_it_is():
    found = read(pickle.dumps(np.array([{"a": 1}, None], dtype=object), 2))
    assert isinstance(found, Opaque)
    assert "array of objects" in found.note


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_become_records_with_their_state(protocol):
    found = read(pickle.dumps(argparse.Namespace(arch="vit", lr=0.1), protocol))
    assert isinstance(found, Opaque)
    assert found.name == "argparse.Namespace"
    assert attributes(found) == {"arch": "vit", "lr": 0.1}


def test_functions_and_classes_become_their_names():
    found = read(pickle.dumps([len, datetime.datetime], 2))
    assert [(item.name, item.args) for item in found] == [("builtins.len", None), ("datetime.datetime", None)]


def test_calls_keep_their_arguments():
    found = read(pickle.dumps(decimal.Decimal("1.5"), 2))
    assert (found.name, found.args) == ("decimal.Decimal", ("1.5",))


def test_items_of_a_container_subclass_are_kept():
    found = read(pickle.dumps(collections.deque([1, 2], maxlen=3), 2))
    assert found.items == [1, 2]


def test_settings_of_omegaconf_are_unwrapped():
    # As omegaconf pickles it: nodes under _content, the value of each under _val.
    node = b"comegaconf.nodes\nAnyNode\n)\x81}X\x04\x00\x00\x00_valK\x07sb"
    content = b"}X\x05\x00\x00\x00depth" + node + b"s"
    found = read(
        b"\x80\x02comegaconf.dictconfig\nDictConfig\n)\x81}X\x08\x00\x00\x00_content" + content + b"sb."
    )
    assert attributes(found) == {"depth": 7}


def test_nothing_is_imported():
    data = pickle.dumps([decimal.Decimal(1), argparse.Namespace(a=1)], 2).replace(b"decimal", b"turtle ")
    read(data.replace(b"turtle ", b"turtle_"))
    assert "turtle" not in sys.modules


def test_container_in_itself_is_cut():
    value = [1]
    value.append(value)
    found, notes = untangle(read_pickle(pickle.dumps(value), where="here")[0], "here")
    assert found[0] == 1
    assert "part of" in found[1].note
    assert "list" in notes[0]


def test_tuple_in_itself_is_cut_where_it_comes_round():
    inner: list = []
    value = (inner, 5)
    inner.append(value)
    found, _ = untangle(read_pickle(pickle.dumps(value), where="here")[0], "here")
    assert found[1] == 5
    assert isinstance(found[0][0], Opaque)


def nested(depth: int, container) -> object:
    value: object = 0
    for _ in range(depth):
        value = container(value)
    return value


@pytest.mark.parametrize(
    "container", [lambda v: [v], lambda v: (v,), lambda v: {"a": v}], ids=["list", "tuple", "dict"]
)
def test_nesting_is_read_up_to_the_limit_and_no_deeper(container):
    value = nested(MAX_DEPTH, container)
    assert read(pickle.dumps(value)) == value
    with pytest.raises(UnsafeCheckpoint, match=f"more than {MAX_DEPTH} deep"):
        read(pickle.dumps(nested(MAX_DEPTH + 1, container)))


def test_objects_nested_too_deep_are_left_out_and_noted():
    value = nested(MAX_DEPTH, lambda v: argparse.Namespace(inner=v))
    sys.setrecursionlimit(10_000)
    try:
        data = pickle.dumps(value, 2)
    finally:
        sys.setrecursionlimit(1_000)
    found, notes = untangle(read_pickle(data, where="here")[0], "here")
    assert isinstance(found, Opaque)
    assert "nested deeper" in notes[0]


def test_sharing_that_unfolds_without_end_is_refused():
    value: list = []
    for _ in range(40):
        value = [value, value]
    with pytest.raises(UnsafeCheckpoint, match="unfolds"):
        read(pickle.dumps(value))


def test_sharing_is_kept_and_walked_once_per_place():
    part = {"w": 1}
    found = read(pickle.dumps([part, part]))
    assert found[0] is found[1]
    assert [path for path, _ in walk(found)] == [(0, "w"), (1, "w")]


LIMITED = {
    "opcodes": (pickle.dumps(list(range(70_000)), 2), LIMITS._replace(opcodes=65_000), "65,000 opcodes"),
    "stack": (b"\x80\x02(" + b"N" * 70_000 + b"t.", LIMITS._replace(stack=10_000), "waiting on its stack"),
    "marks": (b"(" * 70_000 + b".", LIMITS._replace(stack=10_000), "waiting on its stack"),
    "memo": (b"\x80\x02" + b"Nr\x65\x00\x00\x00.", LIMITS._replace(memo=100), "100 remembered values"),
    "text": (pickle.dumps("a" * 101, 2), LIMITS._replace(text=100), "string of 101 bytes"),
    "wide text": (pickle.dumps("é" * 1000, 2), LIMITS._replace(text=4000), "beyond ASCII"),
    "bytes": (pickle.dumps(b"a" * 101, 3), LIMITS._replace(text=100), "byte string of 101 bytes"),
    "number": (pickle.dumps(1 << 800, 2), LIMITS._replace(number=100), "number of 101 bytes"),
    "name": (b"c" + b"a" * 5000 + b"\nb\n.", LIMITS, "name of 4,097 bytes"),
    "tuple keys": (
        pickle.dumps({(k, k): 0 for k in range(20)}, 2),
        LIMITS._replace(tuple_keys=10),
        "10 dict keys",
    ),
    "memory": (
        pickle.dumps([[] for _ in range(70_000)], 2),
        LIMITS._replace(memory=1 << 20),
        "fill the memory",
    ),
}


@pytest.mark.parametrize("limit", LIMITED)
def test_limits_are_enforced(limit):
    data, limits, says = LIMITED[limit]
    with pytest.raises(UnsafeCheckpoint, match=says) as caught:
        read(data, limits=limits)
    assert "Nothing of it was executed" in str(caught.value)


def test_memory_grows_with_the_file():
    data = pickle.dumps([[] for _ in range(70_000)], 2)
    assert len(read(data, limits=LIMITS._replace(memory=1 << 20, grows_after=1000, growth=1000))) == 70_000


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_cut_is_an_error_of_ours(protocol):
    data = pickle.dumps({"a": [1, 2.5, "x", b"y", 1 << 70], "n": argparse.Namespace(z=(1, 2, 3))}, protocol)
    for size in range(len(data)):
        with pytest.raises(CorruptCheckpoint):
            read_pickle(data[:size], where="here")


def test_cut_inside_an_argument_says_that_the_file_ends():
    for data in (
        b"\x80",
        b"\x80\x02K",
        b"\x80\x02X\x05\x00",
        b"\x80\x02X\x05\x00\x00\x00ab",
        b"\x80\x02N",
        b"I1",
    ):
        with pytest.raises(PickleCutShort, match="cut short"):
            read_pickle(data, where="here")


def test_every_single_byte_change_is_a_value_or_an_error_of_ours():
    data = pickle.dumps({"a": [1, 2.5, "x"], "n": argparse.Namespace(z=(1, np.int64(2)))}, 2)
    read_it = 0
    for place in range(len(data)):
        for change in (0x01, 0x80, 0xFF):
            broken = bytearray(data)
            broken[place] ^= change
            try:
                untangle(read_pickle(bytes(broken), where="here")[0], "here")
                read_it += 1
            except (CorruptCheckpoint, UnsafeCheckpoint):
                pass
    assert read_it  # changed letters of a text are still a text


def test_strings_of_python_2_are_text_when_they_can_be():
    assert read(b"U\x03abc.") == "abc"
    assert read(b"U\x02\xff\x00.") == b"\xff\x00"
    assert read(b"S'a\\x41\\n'\n.") == "aA\n"
    with pytest.raises(CorruptCheckpoint, match="escape"):
        read(b"S'a\\q'\n.")


def test_lone_surrogates_can_be_printed():
    assert read(b"V\\ud800\n.").encode() == b"?"
    read(b"X\x03\x00\x00\x00\xed\xa0\x80.").encode()


def test_old_module_names_are_known():
    assert read(b"c__builtin__\nset\n(lp0\nI1\na\x85R.") == {1}


def test_frames_and_protocols_are_checked():
    with pytest.raises(PickleCutShort, match="frame"):
        read(b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.")
    with pytest.raises(CorruptCheckpoint, match="protocol 9"):
        read(b"\x80\x09N.")


def test_several_pickles_follow_each_other():
    data = pickle.dumps(1) + pickle.dumps("b")
    first, position = read_pickle(data, where="here")
    second, end = read_pickle(data, where="here", start=position)
    assert (first, second, end) == (1, "b", len(data))


def test_persistent_ids_need_somebody_who_knows_them():
    data = b"\x80\x02K\x07Q."
    with pytest.raises(UnsafeCheckpoint, match="persistent id"):
        read(data)
    assert read(data, persistent=lambda value: value + 1) == 8
