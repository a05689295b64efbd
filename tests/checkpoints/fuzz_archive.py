"""Coverage-guided fuzzing of everything that reads bytes of unknown origin. Not collected by pytest.

    pip install atheris
    python tests/checkpoints/fuzz_archive.py CORPUS -max_total_time=600 -rss_limit_mb=1024 -timeout=5

The first byte chooses what the rest is: a pickle, the pickle of a torch zip, a whole file, a safetensors
header, the metadata of a distributed checkpoint, what follows the head of a legacy file, or the index of
shards. Anything but a value or a CheckpointError is a finding.
`seeds` writes a corpus of small valid files to start from.
"""

import importlib
import io
import json
import os
import pickle
import sys
import tempfile
import zipfile
from pathlib import Path

if __name__ == "__main__" and sys.argv[1] != "seeds":
    import atheris

    with atheris.instrument_imports(include=["dse_monitor.checkpoints"]):
        importlib.import_module("dse_monitor.checkpoints.archive")

from dse_monitor.checkpoints.archive import check_complete, open_archive
from dse_monitor.checkpoints.reading.contents import Opaque, TensorRef, attributes, module_state, walk
from dse_monitor.checkpoints.reading.pickle_reader import LIMITS, read_pickle
from dse_monitor.checkpoints.reading.tree import untangle
from dse_monitor.errors import CheckpointError

SMALL = LIMITS._replace(opcodes=200_000, memory=16 << 20)
HEADER = json.dumps({"w": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}}).encode()
LEGACY_HEAD = b"".join(
    pickle.dumps(value, 2)
    for value in (
        0x1950A86A20F9469CFC6C,
        1001,
        {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}},
    )
)
DISTCP = bytes(4096)  # what lies beside the metadata
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))


def one_input(data: bytes) -> None:
    """Run one input through the reader it chooses."""
    if not data:
        return
    kind, rest = data[0] % 7, data[1:]
    try:
        if kind == 0:
            value, _ = read_pickle(rest, where="fuzz", limits=SMALL)
            untangle(value, "fuzz")
        elif kind == 4:
            folder = FOLDER / "dcp"
            folder.mkdir(exist_ok=True)
            (folder / ".metadata").write_bytes(rest)
            (folder / "__0_0.distcp").write_bytes(DISTCP)
            use(folder)
        elif kind == 6:
            index = FOLDER / "model.safetensors.index.json"
            index.write_bytes(rest)
            (FOLDER / "a.safetensors").write_bytes(headed(HEADER))
            use(index)
        else:
            path = FOLDER / "file"
            path.write_bytes({1: zipped, 2: bytes, 3: headed, 5: legacy}[kind](rest))
            use(path)
    except CheckpointError:
        pass


def use(path: Path) -> None:
    """Everything a caller does with a path."""
    check_complete(path)
    with open_archive(path) as archive:
        found = [value for _, value in walk(archive.tree)]
        archive.read([value for value in found if isinstance(value, TensorRef)])
        for value in found:
            attributes(value)
            if isinstance(value, Opaque):
                module_state(value)
        archive.verify_unchanged()


def zipped(raw: bytes) -> bytes:
    """A torch zip with this pickle and two storages."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {
            "data.pkl": raw,
            "byteorder": b"little",
            "data/0": bytes(24),
            "data/1": bytes(8),
        }.items():
            archive.writestr(f"a/{name}", content)
        archive.writestr("a/version", b"3\n")
    return buffer.getvalue()


def headed(raw: bytes) -> bytes:
    """A safetensors file with this header and 32 bytes of data."""
    return len(raw).to_bytes(8, "little") + raw + bytes(32)


def legacy(raw: bytes) -> bytes:
    """A legacy torch file whose object, keys and storages are these bytes."""
    return LEGACY_HEAD + raw


def after_three_pickles(buffer: io.BytesIO) -> bytes:
    """What follows the head of a legacy file."""
    buffer.seek(0)
    for _ in range(3):
        pickle.load(buffer)
    return buffer.read()


def seeds(corpus: Path) -> None:
    """Small valid inputs of every kind."""
    import argparse
    import collections

    import numpy as np
    import torch
    import torch.distributed.checkpoint as dcp

    corpus.mkdir(parents=True, exist_ok=True)
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(1))
    values = {
        "state": {"w": torch.zeros(2, 3), "b": torch.zeros(2).bfloat16()},
        "module": module,
        "args": argparse.Namespace(epochs=3, name="vit"),
        "epoch": np.int64(3),
        "array": np.arange(3.0),
        "counts": collections.Counter("abca"),
        "sets": {1, 2, frozenset({3})},
        "long": 1 << 70,
    }
    for protocol in range(6):
        plain = pickle.dumps(
            {key: values[key] for key in ("args", "epoch", "array", "counts", "sets", "long")}, protocol
        )
        (corpus / f"pickle{protocol}").write_bytes(b"\0" + plain)
    for protocol in (2, 4):
        for legacy in (False, True):
            buffer = io.BytesIO()
            torch.save(values, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
            (corpus / f"file{protocol}{legacy}").write_bytes(b"\2" + buffer.getvalue())
            if not legacy:
                with zipfile.ZipFile(buffer) as archive:
                    name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                    (corpus / f"inner{protocol}").write_bytes(b"\1" + archive.read(name))
            else:
                (corpus / f"legacy{protocol}").write_bytes(b"\5" + after_three_pickles(buffer))
    whole = torch.arange(6.0)
    buffer = io.BytesIO()
    torch.save([whole[:2], whole[2:].view(2, 2)], buffer, _use_new_zipfile_serialization=False)
    (corpus / "views").write_bytes(b"\5" + after_three_pickles(buffer))
    index = {"metadata": {"total_size": 32}, "weight_map": {"w": "a.safetensors"}}
    (corpus / "index").write_bytes(b"\6" + json.dumps(index).encode())
    header = {
        "w": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
        "__metadata__": {"format": "pt"},
    }
    (corpus / "header").write_bytes(b"\3" + json.dumps(header).encode())
    dcp.save({"model": {"w": torch.zeros(2, 2)}, "step": 3}, checkpoint_id=str(FOLDER / "made"))
    (corpus / "metadata").write_bytes(b"\4" + (FOLDER / "made" / ".metadata").read_bytes())


if __name__ == "__main__":
    if sys.argv[1] == "seeds":
        seeds(Path(sys.argv[2]))
    else:
        atheris.Setup(sys.argv, one_input)
        atheris.Fuzz()
