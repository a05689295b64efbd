"""Coverage-guided fuzzing of everything that reads bytes of unknown origin. Not collected by pytest.

    pip install atheris
    python tests/checkpoints/fuzz_archive.py CORPUS -max_total_time=600 -rss_limit_mb=1024 -timeout=5

The first byte chooses what the rest is: a pickle, the pickle of a torch zip, a whole file, a safetensors
header, the metadata of a distributed checkpoint, what follows the head of a legacy file, the index of shards,
a description of a tree with the files beside it, edits of such a description (`fuzz_descriptions.py`), a
configuration of OpenMMLab, the parameters of open_clip, or a file of bands. What opens is recognised too.
Anything but a value or an error of the tree is a finding, and so are more than two seconds of processor time
and growth by more than 512 MB. `seeds` writes a corpus of small valid inputs to start from.
"""

import importlib
import io
import json
import os
import pickle
import resource
import sys
import tempfile
import time
import zipfile
from pathlib import Path

if __name__ == "__main__" and sys.argv[1] != "seeds":
    import atheris

    with atheris.instrument_imports(include=["dse_monitor.checkpoints", "dse_monitor.evaluation.arrays"]):
        for module in ("checkpoints.recognition.recognise", "evaluation.arrays"):
            importlib.import_module(f"dse_monitor.{module}")

sys.path.insert(0, os.path.dirname(__file__))
import fuzz_descriptions as descriptions

from dse_monitor.checkpoints import families
from dse_monitor.checkpoints.archive import Archive, check_complete, open_archive
from dse_monitor.checkpoints.reading.contents import Opaque, TensorRef, attributes, module_state, walk
from dse_monitor.checkpoints.reading.pickle_reader import LIMITS, read_pickle
from dse_monitor.checkpoints.reading.tree import untangle
from dse_monitor.checkpoints.recognition.recognise import recognise
from dse_monitor.checkpoints.recognition.sources import mmlab
from dse_monitor.errors import DSEError
from dse_monitor.evaluation import arrays

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
KINDS = 12
SECONDS, MEGABYTES = 2.0, 512  # of one input
BAND_SUFFIXES = (".npy", ".npz", ".tif", ".png")
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))


def one_input(data: bytes) -> None:
    """Run one input through the reader it chooses."""
    try:
        run(data[0] % KINDS if data else 0, data[1:])
    except DSEError:
        pass


def bounded_input(data: bytes) -> None:
    """The same within bounds of time and memory."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one_input(data)
    seconds = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    assert seconds < SECONDS, f"{seconds:.1f} s"
    assert grown < MEGABYTES, f"{grown} MB"


def run(kind: int, rest: bytes) -> None:
    """The reader of a kind of input."""
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
    elif kind == 7:
        descriptions.recognised(descriptions.parsed(rest))
    elif kind == 8:
        descriptions.recognised(descriptions.edited(rest))
    elif kind == 9:
        text = rest.decode("utf-8", "replace")
        mmlab.parsed(text)
        model = {"backbone." + name: value for name, value in descriptions.VIT.items()}
        recognise(Archive(Path("epoch_3.pth"), "fuzz", {"meta": {"cfg": text}, "state_dict": model}))
    elif kind == 10:
        path = FOLDER / "run" / "checkpoints" / "epoch_3.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parents[1] / "params.txt").write_bytes(rest)
        path.write_bytes(headed(HEADER))
        use(path)
    elif kind == 11:
        bands(rest)
    else:
        path = FOLDER / "file"
        path.write_bytes({1: zipped, 2: bytes, 3: headed, 5: legacy}[kind](rest))
        use(path)


def bands(rest: bytes) -> None:
    """Everything a caller does with a file of bands; an .npz is also made of an .npy."""
    kind, content = (rest[0] % 5, rest[1:]) if rest else (0, b"")
    path = FOLDER / f"image{'.npz' if kind == 4 else BAND_SUFFIXES[kind]}"
    if kind == 4:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.npy", content)
    else:
        path.write_bytes(content)
    opened = arrays.open_bands(path)
    axis = arrays.band_axis(opened.shape) if opened.axis is None else opened.axis
    count = arrays.band_count(opened.shape, axis)
    arrays.read_bands(path, axis, count, opened.dtype.name, (count - 1, 0))


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
        recognise(archive)


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


def pictures() -> list[bytes]:
    """Files of bands of every suffix, each after the byte that chooses it."""
    import numpy as np
    from PIL import Image

    made = []
    plain = io.BytesIO()
    np.save(plain, np.zeros((40, 36, 3), np.uint16, order="F"))
    made += [b"\0" + plain.getvalue(), b"\4" + plain.getvalue()]
    packed = io.BytesIO()
    np.savez_compressed(packed, np.zeros((2, 40, 36), np.float32))
    made.append(b"\1" + packed.getvalue())
    for kind, suffix, mode in ((2, "TIFF", "I;16"), (2, "TIFF", "RGB"), (3, "PNG", "RGBA"), (3, "PNG", "P")):
        picture = io.BytesIO()
        Image.new(mode, (36, 40)).save(picture, suffix)
        made.append(bytes((kind,)) + picture.getvalue())
    return made


def seeds(corpus: Path) -> None:
    """Small valid inputs of every kind."""
    import argparse
    import collections

    import numpy as np
    import torch
    import torch.distributed.checkpoint as dcp

    corpus.mkdir(parents=True, exist_ok=True)
    descriptions.add_built()
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
    for number in range(len(descriptions.BASES)):
        (corpus / f"edits{number}").write_bytes(bytes((8, number)))
        (corpus / f"described{number}").write_bytes(b"\7" + descriptions.written(number))
    (corpus / "mmlab").write_bytes(b"\x09" + descriptions.MMLAB.encode())
    (corpus / "params").write_bytes(b"\x0amodel: ViT-B-32-quickgelu\nforce_quick_gelu: False\n")
    for number, content in enumerate(pictures()):
        (corpus / f"bands{number}").write_bytes(b"\x0b" + content)
    dcp.save({"model": {"w": torch.zeros(2, 2)}, "step": 3}, checkpoint_id=str(FOLDER / "made"))
    (corpus / "metadata").write_bytes(b"\4" + (FOLDER / "made" / ".metadata").read_bytes())


if __name__ == "__main__":
    if sys.argv[1] == "seeds":
        seeds(Path(sys.argv[2]))
    else:
        families.REGISTRY.load_all()
        descriptions.add_built()
        for number in range(len(descriptions.BASES)):
            one_input(bytes((8, number)))  # imports what is imported when it is first needed
        atheris.Setup(sys.argv, bounded_input)
        atheris.Fuzz()
