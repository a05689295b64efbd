"""FSDP2: parameters, gradients and optimiser state spread over processes, for networks that DDP cannot hold.

Every transformer block is gathered when it runs; what lies outside the blocks (embeddings, heads) is gathered
for the whole step. Teachers are spread exactly as their students, so that a moving average works on the own
parts alone. Checkpoints hold whole tensors under DDP's names: either kind of run resumes from the other's.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from dse_monitor.trainers import distributed
from dse_monitor.trainers.method import Method, Progress, Views
from dse_monitor.trainers.settings import Settings, TrainingError

LARGE = 250_000_000  # parameters of a backbone from which "auto" shards; ours, between ViT-B (86 M) and ViT-L


def wanted(method: Method, settings: Settings, precision: torch.dtype, device: torch.device) -> bool:
    """Whether a run spreads its network.

    Raises:
        TrainingError: it was asked to, and that cannot be combined with what else it was asked to do.
    """
    obstacles = [
        what
        for what, present in {
            "one process (start several with torchrun)": distributed.world_size() == 1,
            f"the convolutional {method.recipe.backbone}": method.backbone_spec.family == "conv",
            f"--optimizer {method.recipe.optimizer}, whose rule needs whole layers": (
                method.recipe.optimizer not in ("adamw", "sgd")
            ),
            "--precision float16 (take bfloat16)": precision == torch.float16,
            "--compile": settings.compile,
        }.items()
        if present
    ]
    if settings.parallel == "fsdp" and obstacles:
        raise TrainingError(f"--parallel fsdp does not go with {' or '.join(obstacles)}")
    if settings.parallel != "auto":
        return settings.parallel == "fsdp"
    backbone = method.get_submodule(method.evaluated.removesuffix("."))
    size = sum(parameter.numel() for parameter in backbone.parameters())
    return not obstacles and device.type == "cuda" and size >= LARGE


class Sharded(nn.Module):
    """What the engine calls under FSDP: a method whose outputs are a tuple, in which FSDP finds the tensors.

    Args:
        method: it is sharded in place; its names stay the same.
        device: of this process.
    """

    def __init__(self, method: Method, device: torch.device) -> None:
        super().__init__()
        self.method = method
        mesh = init_device_mesh(device.type, (distributed.world_size(),))
        for module in method.modules():
            if isinstance(module, (Block, SwinTransformerBlock)):
                fully_shard(module, mesh=mesh)
        fully_shard(self, mesh=mesh)

    def forward(self, views: Views, progress: Progress) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Loss, dense tokens and logs of ``StepOutput``."""
        out = self.method(views, progress)
        return out.loss, out.dense, out.logs


def whole(state: Any) -> Any:
    """A nested state with every spread tensor put together; a collective, so every process must call it."""
    if isinstance(state, DTensor):
        return state.full_tensor()
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    return [whole(value) for value in state] if isinstance(state, list) else state


@torch.no_grad()
def load(module: nn.Module, state: dict[str, Tensor]) -> None:
    """``load_state_dict`` of whole tensors into a module that may be spread.

    Raises:
        RuntimeError: names or shapes do not fit.
    """
    own = module.state_dict()
    if not any(isinstance(value, DTensor) for value in own.values()):
        module.load_state_dict(state)
        return
    module.load_state_dict({key: _like(state[key], own.get(key)) for key in state})


@torch.no_grad()
def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """``load_state_dict`` of whole tensors into an optimiser whose parameters may be spread."""
    optimizer.load_state_dict(state)
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                entries[key] = _like(value, parameter)


def _like(value: Tensor, target: Any) -> Tensor:
    """A whole tensor spread as another is."""
    if not isinstance(target, DTensor) or value.shape != target.shape:
        return value
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
