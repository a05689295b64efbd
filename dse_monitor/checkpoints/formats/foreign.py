"""Checkpoints of other worlds: recognised, told apart from damage, and refused with advice."""

from __future__ import annotations

import re
from pathlib import Path

from dse_monitor.checkpoints.reading.byte_source import ByteSource, read_at
from dse_monitor.checkpoints.reading.contents import shown
from dse_monitor.errors import CheckpointError, CorruptCheckpoint, IncompleteCheckpoint

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
NUMPY_MAGIC = b"\x93NUMPY"
TENSORFLOW_MAGIC = 0xDB4775248B80FB57  # last eight bytes of an index file (a table of key-value pairs)
_TENSORFLOW_DATA = re.compile(r"(.+)\.data-(\d{5})-of-(\d{5})")
_EXPECTED = "expected a torch or safetensors checkpoint"

ADVICE = {
    "legacy tar": f"is a tar file, as torch wrote before 2017; {_EXPECTED}. "
    "Load it with an old torch where you trust it, and save its weights again with torch.save; unpack it "
    "(tar xf FILE) if it is an ordinary archive of files",
    "HDF5": f"is an HDF5 file (Keras); {_EXPECTED}. Convert its weights and save them as safetensors",
    "NumPy array": f"is a NumPy .npy file; {_EXPECTED}. Save the weights by name as safetensors",
    "TensorFlow": f"is part of a TensorFlow checkpoint; {_EXPECTED}. "
    "Convert its variables and save them as safetensors",
    "TensorFlow SavedModel": f"is a TensorFlow SavedModel; {_EXPECTED}. "
    "Convert its variables and save them as safetensors",
    "Orbax": f"is an Orbax checkpoint (JAX); {_EXPECTED}. Restore it and save the weights as safetensors",
    "Flax": f"is a msgpack file (Flax, JAX); {_EXPECTED}. Restore it and save the weights as safetensors",
    "ONNX": f"is an ONNX graph; {_EXPECTED}. Give the weights it was exported from",
    "GGUF": f"is a GGUF file; {_EXPECTED}. Give the weights it was converted from",
    "plain pickle": f"is a pickle that torch.save did not write; {_EXPECTED}. "
    "Load it where you trust it, and save its weights with torch.save",
    "pickle of NumPy arrays": f"is a pickle of NumPy arrays that torch.save did not write; {_EXPECTED}. "
    "Load it where you trust it, and save the arrays by name as safetensors",
    "scikit-learn": f"is a pickled model of scikit-learn or joblib; {_EXPECTED}. It holds no network",
    "Flax pickle": f"is a pickle of JAX arrays; {_EXPECTED}. "
    "Load it where you trust it, and save the arrays by name as safetensors",
    "gzip": f"is compressed with gzip; {_EXPECTED}. Decompress it: gunzip FILE",
    "compressed tar": f"is a compressed tar archive; {_EXPECTED}. Unpack it: tar xf FILE",
    "bzip2": f"is compressed with bzip2; {_EXPECTED}. Decompress it: bunzip2 FILE",
    "xz": f"is compressed with xz; {_EXPECTED}. Decompress it: unxz FILE",
    "zstd": f"is compressed with zstd; {_EXPECTED}. Decompress it: unzstd FILE",
    "lz4": f"is compressed with lz4; {_EXPECTED}. Decompress it: unlz4 FILE",
    "zlib": f"is compressed with zlib, as joblib does; {_EXPECTED}. "
    "Load it where you trust it, and save the weights with torch.save",
    "7z": f"is a 7-Zip archive; {_EXPECTED}. Unpack it: 7z x FILE",
    "RAR": f"is a RAR archive; {_EXPECTED}. Unpack it: unrar x FILE",
    "HTML": "is an HTML page and no checkpoint: the download brought a web page (login, licence, error) "
    f"instead of the file; {_EXPECTED}. Download it again",
    "Git LFS pointer": f"is a Git LFS pointer, a short text in the place of the file; {_EXPECTED}. "
    "Fetch the file itself: git lfs pull",
}
_COMPRESSED = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "RAR",
}  # fmt: skip
_TAR_NAMES = re.compile(r".*\.(?:tar\.\w+|tgz|tbz2?|txz)")
_LFS = b"version https://git-lfs.github.com/spec/"
_HTML = re.compile(rb"\s*(?:<!--.{0,40}-->\s*)?<(?:!doctype html|html|head|\?xml)", re.IGNORECASE)
# What the first kilobytes of a pickle name, and what it then is; looked for as text, never as code.
_PICKLED = (
    (b"sklearn", "scikit-learn"), (b"joblib.numpy_pickle", "scikit-learn"), (b"jaxlib", "Flax pickle"),
    (b"jax._src", "Flax pickle"), (b"numpy", "pickle of NumPy arrays"),
)  # fmt: skip


def foreign_file(source: ByteSource, head: bytes) -> str:
    """The kind of a file that is recognised only to be refused; "" for others. Nothing is decompressed."""
    if head.startswith(HDF5_MAGIC):
        return "HDF5"
    if head.startswith(NUMPY_MAGIC):
        return "NumPy array"
    if head.startswith(b"GGUF"):
        return "GGUF"
    if head.startswith(_LFS):
        return "Git LFS pointer"
    if _HTML.match(head):
        return "HTML"
    for magic, kind in _COMPRESSED.items():
        if head.startswith(magic):
            return (
                "compressed tar"
                if _TAR_NAMES.fullmatch(source.path.name) and kind not in ("7z", "RAR")
                else kind
            )
    if _TENSORFLOW_DATA.fullmatch(source.path.name):
        return "TensorFlow"
    if source.path.name == "saved_model.pb":
        return "TensorFlow SavedModel"
    if source.path.suffix == ".index" and source.size >= 48:
        if int.from_bytes(source.read(source.size - 8, 8), "little") == TENSORFLOW_MAGIC:
            return "TensorFlow"
    if source.size >= 512 and _is_tar(source.read(0, 512)):
        return "legacy tar"
    if len(head) >= 64 and head[0] == 0x80 and head[1] <= 5:
        start = source.read(0, min(source.size, 16_384))
        return next((kind for word, kind in _PICKLED if word in start), "plain pickle")
    if _is_onnx(head):
        return "ONNX"
    if _is_msgpack(head):
        return "Flax"
    if len(head) >= 64 and head[0] == 0x78 and head[1] in (0x01, 0x5E, 0x9C, 0xDA):
        return "zlib"
    return ""


def _is_onnx(head: bytes) -> bool:
    """Whether it begins as ONNX's ModelProto does: a small version, then a producer."""
    if len(head) < 64 or head[0] != 0x08 or not 0 < head[1] < 64 or head[2] not in (0x12, 0x3A):
        return False
    return head[2] == 0x3A or (head[4 : 4 + min(head[3], 12)].isascii() and head[4:5].isalpha())


def _is_msgpack(head: bytes) -> bool:
    """Whether it begins with a msgpack map whose first key is a short name."""
    if len(head) < 64:
        return False
    start = 1 if 0x81 <= head[0] <= 0x8F else 3 if head[0] == 0xDE else 5 if head[0] == 0xDF else 0
    length = head[start] - 0xA0 if start else 0
    name = head[start + 1 : start + 1 + length]
    return 0 < length < 32 and name.replace(b"_", b"a").isalnum() and name.isascii()


def foreign_folder(folder: Path) -> str:
    """The kind of a folder that is recognised only to be refused; "" for others."""
    if ".orbax-checkpoint-tmp" in folder.name or any(
        (folder / name).exists()
        for name in ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt", "checkpoint.orbax")
    ):
        return "Orbax"
    if (folder / "saved_model.pb").is_file() and not (folder / "model.safetensors").exists():
        return "TensorFlow SavedModel"
    return ""


def refusal(path: Path, kind: str) -> CheckpointError:
    """The error for a recognised kind, to be raised."""
    return CheckpointError(f"{path} {ADVICE[kind]}")


def check_foreign(source: ByteSource, kind: str) -> None:
    """Whether a file of a foreign kind is whole, as far as that can be told.

    Raises:
        IncompleteCheckpoint: it is not.
    """
    if kind == "HDF5":
        end = _hdf5_end(source)
        if end is not None and end != source.size:
            raise IncompleteCheckpoint(
                f"{source.path} (HDF5) has {source.size} bytes, its superblock says {end}"
            )
    if kind == "TensorFlow":
        match = _TENSORFLOW_DATA.fullmatch(source.path.name)
        stem = match[1] if match else source.path.stem
        if not source.path.with_name(f"{stem}.index").exists():
            raise IncompleteCheckpoint(f"{source.path} (TensorFlow) has no {stem}.index beside it yet")
        if match:
            count = int(match[3])
        else:
            found = (_TENSORFLOW_DATA.fullmatch(path.name) for path in source.path.parent.iterdir())
            count = next((int(data[3]) for data in found if data and data[1] == stem), 1)
        for shard in range(min(count, 4096)):
            name = f"{stem}.data-{shard:05d}-of-{count:05d}"
            if not source.path.with_name(name).exists():
                raise IncompleteCheckpoint(f"{source.path} (TensorFlow) lacks {name}")


def _hdf5_end(source: ByteSource) -> int | None:
    """The end-of-file address in a superblock (HDF5 specification, II.A); None when it is not understood."""
    raw = source.read(0, min(96, source.size))
    if len(raw) < 48:
        return None
    version = raw[8]
    offsets = raw[13] if version < 2 else raw[9]  # bytes of an address
    place = {0: 24, 1: 28, 2: 12, 3: 12}.get(version)
    if place is None or offsets not in (4, 8):
        return None
    place += 2 * offsets  # after the base address and one other
    return int.from_bytes(raw[place : place + offsets], "little")


def _is_tar(block: bytes) -> bool:
    """Whether the first 512 bytes are a tar header: it holds the sum of its bytes, that field as blanks."""
    if len(block) < 512 or not block[0]:
        return False
    try:
        said = int(block[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return said == sum(block[:148]) + 8 * 0x20 + sum(block[156:])


def unknown_file(source: ByteSource, head: bytes) -> CheckpointError:
    """The error for a file nothing was recognised in, to be raised."""
    if not source.size:
        return IncompleteCheckpoint(
            f"{source.path} is empty; nothing has been written into it yet, or all was lost"
        )
    if not any(head):
        with source.open() as descriptor:
            start = read_at(descriptor, source, 0, min(4096, source.size))
        if not any(start):
            return IncompleteCheckpoint(
                f"{source.path} begins with zero bytes; its start has not been written yet, or was lost"
            )
    if source.size < 64:
        return IncompleteCheckpoint(f"{source.path} has only {source.size} bytes; it is still being written")
    text = _text(head)
    if text:
        kind = "JSON text" if text[0] in "{[" else "text"
        advice = "Give the file with the weights, or the folder it lies in"
        return CheckpointError(f"{source.path} is {kind} ({shown(text, 24)}); {_EXPECTED}. {advice}")
    return CorruptCheckpoint(
        f"{source.path} is of no known kind: it begins with {head[:8]!r}; {_EXPECTED}, or a folder of one"
    )


def _text(head: bytes) -> str:
    """The first bytes of a file as text, without blanks around it; "" where they are none."""
    try:
        text = head.rstrip(b"\0").decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # more than a character that is cut in two
            return ""
        text = head[: error.start].decode("utf-8")
    return text.strip() if all(sign.isprintable() or sign in "\r\n\t" for sign in text) else ""
