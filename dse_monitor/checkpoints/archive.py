"""Opening a checkpoint of any container: is it whole, what is in it, and the bytes of wanted tensors.

Imports no torch, executes nothing of the file, keeps no file open between calls. One container per module;
here a path is recognised by its content (never by its suffix) and handed on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from dse_monitor.checkpoints.formats.beside import above, beside
from dse_monitor.checkpoints.formats.completeness import Completeness, check_complete
from dse_monitor.checkpoints.formats.containers import (
    DEEPSPEED,
    DISTRIBUTED,
    HUGGING_FACE,
    MEGATRON,
    SAFETENSORS,
    TORCH_ZIP,
    file_kind,
    no_checkpoint,
)
from dse_monitor.checkpoints.formats.distributed import is_distributed, read_distributed
from dse_monitor.checkpoints.formats.foreign import foreign_folder, refusal
from dse_monitor.checkpoints.formats.hugging_face import (
    ADAPTER_CONFIG,
    join_pieces,
    read_shards,
    sidecars,
    weights_of,
)
from dse_monitor.checkpoints.formats.magic import holds_weights
from dse_monitor.checkpoints.formats.peft_folder import ADAPTER_FILES, base_folder, joined
from dse_monitor.checkpoints.formats.rank_folders import deepspeed_files, megatron_files, whole_file
from dse_monitor.checkpoints.formats.safetensors_file import read_safetensors
from dse_monitor.checkpoints.formats.tensor_bytes import read_tensors
from dse_monitor.checkpoints.formats.torch_legacy import read_torch_legacy
from dse_monitor.checkpoints.formats.torch_zip import read_torch_zip
from dse_monitor.checkpoints.reading.byte_source import ByteSource
from dse_monitor.checkpoints.reading.contents import Opaque, TensorRef, attributes, module_state, walk
from dse_monitor.errors import CheckpointError

__all__ = [
    "Archive",
    "Completeness",
    "Opaque",
    "TensorRef",
    "attributes",
    "check_complete",
    "holds_weights",
    "module_state",
    "open_archive",
    "walk",
]

_HUGGING_FACE_NAME = re.compile(
    r"(model|pytorch_model|diffusion_pytorch_model)[-\w]*\.(safetensors|bin)(\.index\.json)?"
)
_SHARDED_CLASSES = ("torch.distributed._shard.", "torch.distributed.tensor.", "torch.distributed._tensor.")


@dataclass
class Archive:
    """What is in a checkpoint, and a way to the bytes of its tensors.

    Attributes:
        path: file or folder.
        container: kind of file, in words.
        tree: nested dicts and lists of plain values, `TensorRef` and `Opaque`.
        notes: what the user should know, one sentence each.
        sidecars: small JSON files beside the weights by name (``config.json``, ``trainer_state.json``).
        metadata: free text in a safetensors header.
    """

    path: Path
    container: str
    tree: Any
    notes: list[str] = field(default_factory=list)
    sidecars: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    _sources: list[ByteSource] = field(default_factory=list, repr=False)

    @property
    def config(self) -> dict[str, Any]:
        """The network's description in a Hugging Face folder (``config.json``); empty without one."""
        config = self.sidecars.get("config.json")
        return config if isinstance(config, dict) else {}

    def read(self, refs: Sequence[TensorRef], digests: list[bytes] | None = None) -> list[memoryview]:
        """Row-major little-endian bytes of each tensor; checksums are compared where the file has any.

        Args:
            refs: what to read.
            digests: eight bytes for each tensor are appended here; they differ where contents differ.

        Raises:
            CorruptCheckpoint: a checksum differs, or the file changed since it was opened.
            IncompleteCheckpoint: the file is gone or shorter than it was.
        """
        return read_tensors(refs, digests)

    def verify_unchanged(self) -> None:
        """Look at every file once more, after reading.

        A file that was deleted meanwhile is no error: what was read came through a handle on it, and is
        noted.

        Raises:
            CorruptCheckpoint: a file was rewritten or replaced.
        """
        for source in self._sources:
            if not source.verify_unchanged():
                self.notes.append(f"{source.path.name} was removed after it was read")

    def close(self) -> None:
        """Nothing is held open; here so that an archive can be used like a file."""

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_archive(path: Path) -> Archive:
    """Open a checkpoint and read everything but the tensors.

    Raises:
        IncompleteCheckpoint: it is cut short, still being written, or gone (then an OSError is the cause).
        CorruptCheckpoint: it contradicts itself.
        UnsafeCheckpoint: it asks for more than data; nothing was executed.
        CheckpointError: it is of a kind that is not read; the text says what to do.
    """
    path = Path(path)
    if path.is_dir():
        archive = _open_folder(path)
    else:
        archive = _open_file(path) if path.name not in ADAPTER_FILES else _open_adapter(path, path)
    archive.notes += _left_out(archive.tree)
    return archive


# Files


def _open_file(path: Path) -> Archive:
    source = ByteSource(path)
    kind, refused = file_kind(source)
    if refused is not None:
        raise refused
    if kind == HUGGING_FACE:
        archive = _open_index(path)
    else:
        tree, metadata, notes = _content(source, kind)
        archive = Archive(path, kind, tree, notes, metadata=metadata, _sources=[source])
    if _HUGGING_FACE_NAME.fullmatch(path.name):
        archive.sidecars = {**above(path.parent, archive.notes), **sidecars(path.parent, archive.notes)}
    elif (path.parent / ADAPTER_CONFIG).is_file():
        archive.sidecars = sidecars(path.parent, archive.notes, (ADAPTER_CONFIG,))
    else:
        archive.sidecars = beside(path, archive.notes)
    _refuse_shard_list(archive)
    return archive


def _content(source: ByteSource, kind: str) -> tuple[Any, dict[str, Any], list[str]]:
    """Tree, free text and notes of a single file."""
    if kind == SAFETENSORS:
        tensors, metadata = read_safetensors(source)
        return tensors, metadata, []
    tree, notes = read_torch_zip(source) if kind == TORCH_ZIP else read_torch_legacy(source)
    return tree, {}, notes


def _open_shard(path: Path) -> tuple[Any, list[ByteSource], list[str]]:
    source = ByteSource(path)
    kind, refused = file_kind(source)
    if refused is not None or kind == HUGGING_FACE:
        raise refused or CheckpointError(f"{path} is an index, expected a file with tensors")
    tree, _, notes = _content(source, kind)
    return tree, [source], notes


def _open_index(path: Path) -> Archive:
    tree, sources, notes = read_shards(path, _open_shard)
    container = "sharded safetensors" if ".safetensors" in path.name else "sharded torch files"
    return Archive(path, container, tree, notes, _sources=[ByteSource(path), *sources])


def _refuse_shard_list(archive: Archive) -> None:
    """VISSL writes, in the place of a large model, the list of files it is spread over."""
    tree = archive.tree
    if isinstance(tree, dict) and tree.get("type") == "shard_list":
        names = tree.get("shard_list")
        count = len(names) if isinstance(names, list) else "several"
        raise CheckpointError(
            f"{archive.path} (VISSL shard_list) only lists {count} shard files, expected the weights "
            "themselves; "
            "consolidate them once with VISSL (extra_scripts/convert_sharded_checkpoint.py) and give the "
            "new file"
        )


def _left_out(tree: Any) -> list[str]:
    """Notes on tensors that could not be described, by reason."""
    reasons: dict[str, int] = {}
    for _, value in walk(tree):
        if not isinstance(value, Opaque):
            continue
        note = value.note if value.note.startswith("not built") else ""
        if value.name.startswith(_SHARDED_CLASSES):
            note = f"not built: {value.name} is one rank's part of a tensor"
        if "torch.distributed." in note:
            note += (
                "; give a consolidated checkpoint (get_model_state_dict with full_state_dict=True; DINOv2: "
                "eval/training_*/teacher_checkpoint.pth) or the folder of torch.distributed.checkpoint"
            )
        if note:
            reasons[note] = reasons.get(note, 0) + 1
    return [
        f"{count} values {note}" if count > 1 else f"a value {note}"
        for note, count in list(reasons.items())[:20]
    ]


# Folders


def _open_folder(path: Path) -> Archive:
    if foreign_folder(path):
        raise refusal(path, foreign_folder(path))
    if is_distributed(path):
        tree, sources, notes = read_distributed(path)
        found = sidecars(path, notes)
        return Archive(path, DISTRIBUTED, tree, notes, sidecars=found, _sources=sources)
    for kind, files in ((DEEPSPEED, deepspeed_files(path)), (MEGATRON, megatron_files(path))):
        if files:
            archive = _open_file(whole_file(path, files, kind))
            archive.path, archive.container = path, f"{kind} ({archive.container})"
            return archive
    weights = weights_of(path)
    if weights is not None and weights.name in ADAPTER_FILES:
        return _open_adapter(path, weights)
    if weights is not None:
        archive = _open_file(weights)
        archive.container = f"{HUGGING_FACE} folder ({archive.container})"
        archive.path = path
        archive.sidecars = {**above(path, archive.notes), **sidecars(path, archive.notes)}
        return archive
    pieces = sorted(path.glob("*.safetensors"))
    if pieces:
        return _open_pieces(path, pieces)
    raise no_checkpoint(path)


def _open_adapter(path: Path, weights: Path) -> Archive:
    """What peft saves of a network: its adapters, joined here with the network they were trained on.

    Raises:
        CheckpointError: that network is not on this machine, or not the one of these adapters.
    """
    notes: list[str] = []
    beside = sidecars(weights.parent, notes)
    config = beside.get(ADAPTER_CONFIG)
    base = base_folder(weights, config)
    inner = weights_of(base)
    if inner is not None and inner.name in ADAPTER_FILES:  # they could name each other in a circle
        raise CheckpointError(
            f"{weights} holds adapters only (peft), and so does the folder it names, {base}; "
            "merge_and_unload() the model with peft and give the whole network"
        )
    adapter, network = _open_file(weights), _open_folder(base)
    tree = joined(weights, adapter.tree, network.tree)
    notes += [*adapter.notes, *network.notes, f"The adapters are added to the network in {base}"]
    found = {**network.sidecars, **{name: beside[name] for name in beside if name != "config.json"}}
    container = f"peft adapter ({adapter.container}) on {network.container}"
    sources = [*adapter._sources, *network._sources]
    return Archive(path, container, tree, notes, sidecars=found, _sources=sources)


def _open_pieces(path: Path, files: list[Path]) -> Archive:
    """A folder of safetensors files without an index: pieces by rank, or nothing we know."""
    sources = [ByteSource(file) for file in files]
    tree = join_pieces([read_safetensors(source) for source in sources], path)
    if tree is None:
        raise CheckpointError(
            f"{path} holds {len(files)} safetensors files and no index that says which belong together; "
            "give one of them"
        )
    return Archive(path, f"{DISTRIBUTED} (safetensors)", tree, _sources=sources)
