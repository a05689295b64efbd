"""Whatever the bytes: a value, or an error of the tree. Random, but the same bytes on every run.

`fuzz_archive.py` is the coverage-guided side of this; inputs it found worth keeping are replayed here.
"""

import contextlib
import importlib.util
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dse_monitor.checkpoints.archive import TensorRef, check_complete, open_archive, walk
from dse_monitor.checkpoints.named import timm_networks, transformers_networks
from dse_monitor.checkpoints.reading.pickle_reader import LIMITS, read_pickle
from dse_monitor.checkpoints.reading.tree import untangle
from dse_monitor.errors import CheckpointError

CORPUS = Path(__file__).resolve().parents[1] / "data" / "checkpoints" / "fuzz_corpus.zip"
SMALL = LIMITS._replace(opcodes=100_000, memory=16 << 20)
CALM = settings(
    derandomize=True, deadline=None, database=None, max_examples=200, suppress_health_check=list(HealthCheck)
)  # fmt: skip

KEYS = st.one_of(
    st.text(max_size=5), st.integers(-(2**60), 2**60), st.booleans(), st.binary(max_size=4), st.none()
)
PLAIN = st.recursive(
    st.one_of(KEYS, st.floats(allow_nan=False), st.integers(), st.complex_numbers(allow_nan=False)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4),
        st.tuples(inner, inner),
        st.frozensets(KEYS, max_size=3),
    ),
    max_leaves=20,
)


@CALM
@given(PLAIN, st.integers(0, 5))
def test_plain_values_survive_every_protocol(value, protocol):
    data = pickle.dumps(value, protocol)
    found, end = read_pickle(data, where="here")
    assert untangle(found, "here")[0] == value
    assert end == len(data)


OPCODES = st.sampled_from([bytes([code]) for code in b"(.012FGIJKLMNPQRSTUVX]abcdeghijlopqrstu})\x80"] + [
    bytes([code]) for code in range(0x80, 0x99)
])  # fmt: skip
ARGUMENTS = st.one_of(
    st.binary(max_size=9),
    st.sampled_from(
        [b"\x00", b"\x01", b"\x04\x00\x00\x00", b"1\n", b"ctorch\nSize\n", b"ccollections\nOrderedDict\n"]
    ),
    st.sampled_from(
        [b"ctorch._utils\n_rebuild_tensor_v2\n", b"cnumpy\ndtype\n", b"c_codecs\nencode\n", b"X\x01\0\0\0a"]
    ),
)
PROGRAMS = st.lists(st.one_of(OPCODES, ARGUMENTS), max_size=60).map(b"".join)


@CALM
@given(PROGRAMS)
def test_any_program_of_opcodes_is_a_value_or_an_error_of_ours(program):
    with contextlib.suppress(CheckpointError):
        untangle(read_pickle(program + b".", where="here", limits=SMALL)[0], "here")


def whole_files() -> dict[str, bytes]:
    """Small valid files of each container."""
    value = {"model": {"w": torch.arange(6.0).view(2, 3), "b": torch.ones(3).half()}, "epoch": np.int64(3)}
    made = {}
    for kind in ("zip", "legacy"):
        buffer = io.BytesIO()
        torch.save(value, buffer, _use_new_zipfile_serialization=kind == "zip")
        made[kind] = buffer.getvalue()
    header = b'{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"__metadata__":{"a":"b"}}'
    made["safetensors"] = len(header).to_bytes(8, "little") + header + bytes(24)
    return made


WHOLE = whole_files()


def use(path: Path) -> None:
    """Everything a caller does; the only way out is a value or an error of the tree."""
    check_complete(path)
    with contextlib.suppress(CheckpointError), open_archive(path) as archive:
        archive.read([ref for _, ref in walk(archive.tree) if isinstance(ref, TensorRef)])
        archive.verify_unchanged()


@pytest.mark.parametrize("kind", WHOLE)
def test_broken_files_are_values_or_errors_of_ours(tmp_path, kind):
    path = tmp_path / "model.pth"
    data = WHOLE[kind]

    @CALM
    @given(
        st.lists(st.tuples(st.integers(0, len(data) - 1), st.binary(min_size=1, max_size=8)), max_size=4),
        st.integers(0, len(data)),
        st.binary(max_size=20),
    )
    def check(changes, cut, tail):
        broken = bytearray(data)
        for place, new in changes:
            broken[place : place + len(new)] = new
        path.write_bytes(bytes(broken[: len(data) - cut // 4]) + tail)
        use(path)

    check()


@pytest.mark.parametrize("size", [1, 2, 3, 8, 9, 63, 64, 511, 512])
@pytest.mark.parametrize("byte", [0x00, 0x7B, 0x80, 0x50, 0x89, 0x93, 0xFF])
def test_short_files_of_one_byte_are_told_apart_without_a_crash(tmp_path, byte, size):
    (tmp_path / "a.pth").write_bytes(bytes([byte]) * size)
    use(tmp_path / "a.pth")


def test_kept_inputs_of_the_fuzzer_still_end_well(monkeypatch):
    for module in (timm_networks, transformers_networks):  # the fuzzer builds small networks alone: put back
        monkeypatch.setattr(module, "_make", module._make)
    spec = importlib.util.spec_from_file_location("fuzz_archive", Path(__file__).with_name("fuzz_archive.py"))
    assert spec is not None
    assert spec.loader is not None
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    with zipfile.ZipFile(CORPUS) as archive:
        names = archive.namelist()
        for name in names:
            fuzz.one_input(archive.read(name))
    assert len(names) > 200
