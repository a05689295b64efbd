"""A checkpoint's path -> Encoder: open, recognise, build, read only the encoder's tensors, close, assign."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dse_monitor.checkpoints.archive import open_archive
from dse_monitor.checkpoints.options import ReadingOptions
from dse_monitor.checkpoints.recognition.recognise import Recognition, recognise
from dse_monitor.checkpoints.scalars import read_scalars
from dse_monitor.encoder import Encoder
from dse_monitor.errors import FeatureError
from dse_monitor.runs.record import Source

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dse_monitor.checkpoints.families.network import Network
    from dse_monitor.checkpoints.reading.contents import TensorRef
    from dse_monitor.facts import Fact
    from dse_monitor.preprocessing import Preprocessing


def load_encoder(
    path: str | os.PathLike[str],
    options: ReadingOptions | None = None,
    **fields: Any,
) -> Encoder:
    """The evaluated encoder of a checkpoint, ready to turn images into dense tokens.

    Only the encoder's tensors are read, and nothing of the file is executed.

    Args:
        path: a file (torch zip or legacy, safetensors, Lightning) or a checkpoint folder.
        options: what you say about the checkpoint; everything not said is recognised.
        fields: fields of `ReadingOptions` in its place, such as ``encoder="student"`` or ``num_heads=6``.

    Raises:
        IncompleteCheckpoint: cut short, or still being written.
        CorruptCheckpoint: its bytes contradict themselves, or changed while being read.
        UnsafeCheckpoint: asks for more than data.
        UnknownLayout: no encoder was recognised; says what was found and what helps.
        AmbiguousArchitecture: several networks fit; names them and the option that decides.
        ValueError: an option that has no meaning.
    """
    path = Path(path)
    options = options or ReadingOptions(**fields)
    with open_archive(path) as archive:
        found = recognise(
            archive,
            options,
            scalars=lambda refs: read_scalars(archive, refs),
        )
        module = found.module  # before anything is read, so that what cannot be built costs nothing
        sources = found.sources()
        digests: list[bytes] = []
        blobs = archive.read(list(sources.values()), digests)
        archive.verify_unchanged()
    tensors = {name: as_tensor(ref, blob) for (name, ref), blob in zip(sources.items(), blobs, strict=True)}
    by_name = [
        digest for _, digest in sorted(zip(sources, digests, strict=True))
    ]  # whatever the file's order
    content = hashlib.sha256(b"".join(by_name)).hexdigest()
    return _encoder(path, found, module, tensors, content, None if options.layer == "last" else options.layer)


def as_tensor(ref: TensorRef, blob: memoryview) -> Tensor:
    """The tensor a reference describes, over its bytes; floating types become float32."""
    dtype: torch.dtype = getattr(torch, ref.dtype)
    if not blob:
        return torch.zeros(tuple(ref.shape), dtype=dtype)
    tensor = torch.frombuffer(blob, dtype=torch.uint8).view(dtype).view(tuple(ref.shape))
    return tensor.float() if tensor.is_floating_point() else tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether there is no NaN or infinity in it. A finite sum proves that; a sum may overflow by itself."""
    if not tensor.is_floating_point() or bool(tensor.sum().isfinite()):
        return True
    return bool(tensor.isfinite().all())


def _encoder(
    path: Path,
    found: Recognition,
    module: nn.Module,
    tensors: dict[str, Tensor],
    digest: str,
    layer: int | None,
) -> Encoder:
    state = {
        name: piece.make([tensors[source] for source in piece.sources])
        for name, piece in found.pieces.items()
    }
    non_finite = tuple(name for name, tensor in state.items() if not is_finite(tensor))
    for name, tensor in module.state_dict().items():  # counters old files lack, heads that are not used
        if name not in state:
            state[name] = torch.zeros(tuple(tensor.shape), dtype=tensor.dtype) if tensor.is_meta else tensor
    module.load_state_dict(state, strict=True, assign=True)
    status = path.stat()
    source = Source(
        path=str(path),
        content=digest,
        size=status.st_size,
        mtime=status.st_mtime,
        epoch=found.progress.epoch,
        epoch_source=found.progress.epoch_source,
        step=found.progress.step,
        step_source=found.progress.step_source,
        layout=found.layout.name,
        encoder=found.encoder,
        arch=found.network.description,
    )
    return assembled(
        module,
        found.network,
        source,
        preprocessing=found.preprocessing,
        facts=found.facts,
        layer=layer,
        notes=found.notes,
        non_finite=non_finite,
    )


def assembled(
    module: nn.Module,
    network: Network,
    source: Source,
    *,
    preprocessing: Preprocessing,
    facts: tuple[Fact, ...] = (),
    layer: int | None = None,
    notes: tuple[str, ...] = (),
    non_finite: tuple[str, ...] = (),
) -> Encoder:
    """The encoder of a module that has its weights, as the network describes it.

    Raises:
        FeatureError: the network has no such layer, or only its last can be read.
    """
    if layer is not None and layer > network.layers:
        has = f"has layers 1 to {network.layers}" if network.layers else "gives out its last layer alone"
        raise FeatureError(f"{source.path}: --layer {layer}: {network.description} {has}")
    return Encoder(
        module,
        source,
        tokens=network.tokens,
        grid=network.grid,
        width=network.width,
        preprocessing=preprocessing,
        any_size=network.any_size,
        convolutional=network.convolutional,
        layer=layer,
        layers=network.layers,
        facts=facts,
        notes=notes,
        non_finite=non_finite,
        transform=network.transform,
        transform_id=network.transform_id,
    )
