"""Files of `torch.save` since version 1.6: a zip of a pickle (``data.pkl``) and a member per storage."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

from dse_monitor.checkpoints.reading.byte_source import ByteSource, Record
from dse_monitor.checkpoints.reading.contents import Opaque, Storage, shown
from dse_monitor.checkpoints.reading.pickle_reader import PickleCutShort, read_pickle
from dse_monitor.checkpoints.reading.tree import untangle
from dse_monitor.checkpoints.reading.understood import storage_type
from dse_monitor.checkpoints.reading.zip_directory import read_directory, read_member
from dse_monitor.errors import CheckpointError, CorruptCheckpoint

MAX_PICKLE = 256 << 20  # bytes of data.pkl; ours: a hundred times a checkpoint with ten thousand tensors
MAX_PACKED_PICKLE = 64 << 20  # bytes of a data.pkl that was deflated (torch never does)
PACKED_ALLOWANCE = 32 << 20  # bytes a deflated storage may unpack to in any case; ours
PACKED_RATIO = 8  # times its packed bytes it may unpack to beyond that; weights hardly shrink at all
CRC_NOTE = (
    "the file was written without checksums (torch.serialization.set_crc32_options(False)): not verified"
)


def read_torch_zip(
    source: ByteSource, base: int = 0, size: int | None = None, prefix: str = ""
) -> tuple[Any, list[str]]:
    """The tree of a torch zip, or of one inside a larger file.

    Args:
        source: the file.
        base: where the zip begins.
        size: its bytes; to the end of the file by default.
        prefix: what to call it in messages when it is part of a larger file.

    Returns:
        The tree, and notes for the user.

    Raises:
        CheckpointError: the zip is something else; the text says what and what to do.
        CorruptCheckpoint: its parts contradict each other.
        UnsafeCheckpoint: its pickle asks for more than data.
    """
    size = source.size - base if size is None else size
    notes: list[str] = []
    where = f"{source.path}: {prefix}data.pkl"
    with source.open() as descriptor:
        members = read_directory(descriptor, source, base, size)
        root = _root(source, members)
        pickled = members[f"{root}data.pkl"]
        data = read_member(descriptor, pickled, MAX_PICKLE if pickled.packed is None else MAX_PACKED_PICKLE)
        small = {
            name: read_member(descriptor, members[root + name], 64)
            for name in ("version", "byteorder")
            if root + name in members
        }
    checked = _crc_is_real(source, root, members, {**small, "data.pkl": data})
    if not checked:
        notes.append(CRC_NOTE)
    source.checksummed = checked and not base
    big_endian = _big_endian(source, small)
    storages: dict[str, Storage] = {}

    def storage(identifier: Any) -> Storage | Opaque:
        return _storage(source, root, members, storages, identifier, checked, big_endian)

    try:
        value, _ = read_pickle(data, where=where, persistent=storage)
    except PickleCutShort as error:
        raise CorruptCheckpoint(str(error)) from None
    tree, cuts = untangle(value, where)
    return tree, notes + cuts


def _root(source: ByteSource, members: dict[str, Record]) -> str:
    """The folder inside the zip that everything lies in, with its slash."""
    roots = [
        name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl") and name.count("/") == 1
    ]
    if len(roots) == 1:
        root = roots[0]
        if f"{root}constants.pkl" in members:
            raise CheckpointError(
                f"{source.path} is a TorchScript archive (it holds code in {root}code/), expected the "
                "weights of torch.save; "
                "export its state dict once with a trusted torch: "
                "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
            )
        return root
    raise foreign_zip(source, list(members), roots)


def foreign_zip(source: ByteSource, names: list[str], roots: list[str]) -> CheckpointError:
    """What a zip without torch's layout is, in words."""
    first = ", ".join(repr(name) for name in names[:3]) or "nothing"
    if any(name.endswith(".npy") for name in names):
        return CheckpointError(
            f"{source.path} is a NumPy .npz archive (members {first}), expected a torch or safetensors "
            "checkpoint; "
            "convert its arrays to tensors and save them as safetensors"
        )
    if "model.weights.h5" in names or "config.json" in names:
        return CheckpointError(
            f"{source.path} is a Keras archive (members {first}), expected a torch or safetensors "
            "checkpoint; "
            "convert its weights and save them as safetensors"
        )
    if any(name.endswith(("/archive_format", "/models/model.json")) for name in names) or (
        "serialized_exported_program.json" in names
    ):
        return CheckpointError(
            f"{source.path} is an exported program (torch.export, .pt2), expected the weights of torch.save; "
            "export its state dict once with a trusted torch: "
            "torch.save(torch.export.load(FILE).state_dict, NEW_FILE)"
        )
    if any(name.startswith(("data/", "archive/data/")) or name.endswith(".pth") for name in names):
        return CheckpointError(
            f"{source.path} is a zip of files ({first}) and not what torch.save writes; unpack it (unzip "
            "FILE) and give the checkpoint in it"
        )
    if len(roots) > 1:
        return CorruptCheckpoint(
            f"{source.path}: a zip with {len(roots)} files data.pkl, expected one; save it again"
        )
    return CheckpointError(
        f"{source.path} is a zip of {len(names)} members ({first}) without NAME/data.pkl, expected what "
        "torch.save writes"
    )


def _crc_is_real(
    source: ByteSource, root: str, members: dict[str, Record], contents: dict[str, bytes]
) -> bool:
    """Whether checksums can be trusted; a wrong one in a file that has right ones is damage.

    torch can write files with zeros for checksums. Then those of the small records are wrong too, whose
    content is known.
    """
    right = {
        name: zlib.crc32(content) == members[root + name].crc for name, content in contents.items() if content
    }
    if all(right.values()):
        return True
    plain = all(contents.get(name, b"1").strip().isalnum() for name in ("version", "byteorder"))
    if not any(right.values()) and plain:
        return False
    name = next(name for name, good in right.items() if not good)
    raise members[root + name].fail(
        "does not match its checksum: its bytes were damaged or mixed with another checkpoint's"
    )


def _big_endian(source: ByteSource, small: dict[str, bytes]) -> bool:
    order = small.get("byteorder", b"little").strip()
    if order not in (b"little", b"big"):
        raise CorruptCheckpoint(
            f"{source.path}: record 'byteorder' says {order!r:.40}, expected 'little' or 'big'; save it again"
        )
    return order == b"big"


def _storage(
    source: ByteSource,
    root: str,
    members: dict[str, Record],
    known: dict[str, Storage],
    identifier: Any,
    checked: bool,
    big_endian: bool,
) -> Storage:
    """A persistent id, ``("storage", class, key, device, elements)``, as the member it names."""
    if type(identifier) is not tuple or len(identifier) != 5 or identifier[0] != "storage":
        raise ValueError("not in the form torch writes them")
    _, kind, key, _, count = identifier
    dtype, itemsize = storage_type(kind)
    if type(key) is not str or type(count) is not int or not 0 <= count < 1 << 56:
        raise ValueError("its key or length is of the wrong kind")
    member = members.get(f"{root}data/{key}")
    if member is None:
        raise CorruptCheckpoint(
            f"{source.path}: its pickle names storage {shown(key)}, which the archive lacks; save the "
            "checkpoint again"
        )
    if member.nbytes != count * itemsize:
        raise CorruptCheckpoint(
            f"{source.path}: storage {shown(key)} has {member.nbytes} bytes, its pickle says "
            f"{count * itemsize}; "
            "save the checkpoint again"
        )
    if member.packed is not None and member.nbytes > PACKED_ALLOWANCE + PACKED_RATIO * member.packed:
        raise CorruptCheckpoint(
            f"{source.path}: storage {shown(key)} is packed from {member.nbytes:,} bytes to "
            f"{member.packed:,}, "
            "which no weights do; this is no checkpoint"
        )
    found = known.get(key)
    if found is None:
        record = member if checked else dataclasses.replace(member, crc=None)
        found = known[key] = Storage(dtype, member.nbytes, record, big_endian=big_endian)
    if found.dtype != dtype:
        return Storage(dtype, found.nbytes, found.record, big_endian=big_endian)
    return found
