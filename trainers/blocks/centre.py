"""Moving mean of teacher logits that keeps self-distillation from collapsing (DINO, EsViT, iBOT, Mugs)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dse_monitor.trainers.distributed import mean_over_processes


def updated_centre(centre: Tensor, batch_mean: Tensor, momentum: float) -> Tensor:
    """Momentum * centre + (1 - momentum) * batch_mean, the mean being over the rows of all processes."""
    return centre * momentum + batch_mean * (1 - momentum)


class Centre(nn.Module):
    """Centre of teacher logits; a loss uses the old value, :meth:`update` moves it once per optimiser step.

    The authors update right after the loss. Waiting until the step is over gives the same numbers and lets
    micro-batches add up to the large batch.

    Attributes:
        value: [1, ..., K], saved with the method.
    """

    value: Tensor

    def __init__(self, *shape: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(shape))
        self._seen: list[Tensor] = []

    @torch.no_grad()
    def observe(self, logits: Tensor) -> None:
        """Remember raw teacher logits [rows, K] or [rows, N, K] , every row alike, for the next update."""
        axes = tuple(range(logits.dim() - 1))
        self._seen.append(logits.detach().float().mean(axes))

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the mean of what was observed since the last update, over all processes."""
        if self._seen:
            mean = mean_over_processes(torch.stack(self._seen).mean(0))
            self.value.copy_(updated_centre(self.value, mean.view_as(self.value), self.momentum))
            self._seen.clear()
