"""Which container a path is: by its first bytes and the files beside it, never by its suffix."""

from __future__ import annotations

from pathlib import Path

from dse_monitor.checkpoints.formats.foreign import foreign_file, refusal, unknown_file
from dse_monitor.checkpoints.formats.safetensors_file import looks_like_safetensors
from dse_monitor.checkpoints.formats.torch_legacy import is_legacy
from dse_monitor.checkpoints.reading.byte_source import ByteSource
from dse_monitor.checkpoints.reading.zip_directory import LOCAL
from dse_monitor.errors import CheckpointError, IncompleteCheckpoint

TORCH_ZIP, TORCH_LEGACY, SAFETENSORS = "torch zip", "torch legacy", "safetensors"
DISTRIBUTED, DEEPSPEED, MEGATRON, HUGGING_FACE = (
    "torch.distributed.checkpoint",
    "DeepSpeed",
    "Megatron",
    "Hugging Face",
)
_INDEX = ".index.json"


def file_kind(source: ByteSource) -> tuple[str, CheckpointError | None]:
    """The container of a file by its first bytes, and the refusal if it is one that is not read."""
    head = source.read(0, min(64, source.size))
    if source.path.name.endswith(_INDEX):
        return HUGGING_FACE, None
    # First of all: the length it begins with can look like any other kind's first bytes.
    if looks_like_safetensors(head):
        return SAFETENSORS, None
    if head[:4] == LOCAL:
        return TORCH_ZIP, None
    if is_legacy(head):
        return TORCH_LEGACY, None
    kind = foreign_file(source, head)
    if kind:
        return kind, refusal(source.path, kind)
    error = unknown_file(source, head)
    if isinstance(error, IncompleteCheckpoint):
        raise error
    return "", error


def no_checkpoint(path: Path) -> CheckpointError:
    """The error for a folder nothing was recognised in, to be raised."""
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        return IncompleteCheckpoint(f"{path} cannot be read: {error.strerror or error}")
    shown = ", ".join(repr(name) for name in names[:4]) or "nothing"
    return CheckpointError(
        f"{path} is a folder with {len(names)} entries ({shown}) and none of the files of a checkpoint "
        "folder "
        "(.metadata, *.safetensors, pytorch_model.bin, *_model_states.pt); give a checkpoint file, or "
        "watch the folder"
    )
