"""lightly's own example loops, one optimiser step each, from lightly's heads, losses and EMA.

Each takes the method's recipe and views [B, 3, h, w], and gives a step to call; network and sizes are the
recipe's. The optimiser is of the recipe's class, lightly's own LARS for ours and for LARC, so that the same
update is timed on both sides; no schedule, no clipping, no logging, no checkpointing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightly.loss import (
    BarlowTwinsLoss,
    DINOLoss,
    NegativeCosineSimilarity,
    NTXentLoss,
    SwaVLoss,
    VICRegLoss,
)
from lightly.models import modules
from lightly.models.modules import heads
from lightly.models.utils import select_most_similar, update_momentum
from lightly.utils.lars import LARS
from torch import Tensor, nn

from trainers import backbones

Step = Callable[[], None]


def backbone_of(recipe: Any) -> tuple[nn.Module, int]:
    spec = backbones.describe(recipe.backbone, recipe.image_size)
    return backbones.build(spec), spec.width


class Branch(nn.Module):
    """Backbone and head."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, h, w] -> [B, C]."""
        return self.head(backbones.features(self.backbone, images).pooled)


def optimiser(recipe: Any, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The recipe's class, from torch or lightly, with momentum and decay as there."""
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=1e-3)
    kind = torch.optim.SGD if recipe.optimizer == "sgd" else LARS
    return kind(parameters, lr=0.06, momentum=recipe.sgd_momentum, weight_decay=1e-6)


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def dino(recipe: Any, images: list[Tensor]) -> Step:
    def branch() -> Branch:
        backbone, width = backbone_of(recipe)
        widths = (width, recipe.head_hidden, recipe.head_bottleneck, recipe.prototypes)
        return Branch(backbone, modules.DINOProjectionHead(*widths))

    student, teacher = branch(), branch().requires_grad_(False)
    teacher.load_state_dict(student.state_dict())
    criterion = DINOLoss(output_dim=recipe.prototypes, warmup_teacher_temp_epochs=5)
    optimizer = optimiser(recipe, student.parameters())

    def step() -> None:
        update_momentum(student, teacher, m=0.99)
        with torch.no_grad():
            targets = [teacher(view) for view in images[:2]]
        loss = criterion(targets, [student(view) for view in images], epoch=0)
        loss.backward()
        student.head.cancel_last_layer_gradients(current_epoch=0)  # pyright: ignore[reportCallIssue]
        optimizer.step()
        optimizer.zero_grad()

    return step


def barlowtwins(recipe: Any, images: list[Tensor]) -> Step:
    backbone, width = backbone_of(recipe)
    w = recipe.projector_width
    model = Branch(backbone, modules.BarlowTwinsProjectionHead(width, w, w))
    criterion, optimizer = BarlowTwinsLoss(), optimiser(recipe, model.parameters())
    return lambda: descend(criterion(model(images[0]), model(images[1])), optimizer)


def vicreg(recipe: Any, images: list[Tensor]) -> Step:
    backbone, width = backbone_of(recipe)
    w = recipe.expander_width
    model = Branch(backbone, heads.VICRegProjectionHead(width, w, w, num_layers=3))
    criterion, optimizer = VICRegLoss(), optimiser(recipe, model.parameters())
    return lambda: descend(criterion(model(images[0]), model(images[1])), optimizer)


def simsiam(recipe: Any, images: list[Tensor]) -> Step:
    backbone, width = backbone_of(recipe)
    model = Branch(backbone, modules.SimSiamProjectionHead(width, width, recipe.projection))
    predictor = modules.SimSiamPredictionHead(recipe.projection, recipe.predictor_hidden, recipe.projection)
    criterion = NegativeCosineSimilarity()
    optimizer = optimiser(recipe, [*model.parameters(), *predictor.parameters()])

    def step() -> None:
        z0, z1 = model(images[0]), model(images[1])
        p0, p1 = predictor(z0), predictor(z1)
        descend((criterion(z0.detach(), p1) + criterion(z1.detach(), p0)) / 2, optimizer)

    return step


def byol(recipe: Any, images: list[Tensor]) -> Step:
    backbone, width = backbone_of(recipe)
    model = Branch(backbone, modules.BYOLProjectionHead(width, recipe.hidden, recipe.projection))
    predictor = modules.BYOLPredictionHead(recipe.projection, recipe.hidden, recipe.projection)
    target = copy.deepcopy(model).requires_grad_(False)
    criterion = NegativeCosineSimilarity()
    optimizer = optimiser(recipe, [*model.parameters(), *predictor.parameters()])

    def step() -> None:
        update_momentum(model, target, m=0.99)
        p0, p1 = predictor(model(images[0])), predictor(model(images[1]))
        with torch.no_grad():
            z0, z1 = target(images[0]), target(images[1])
        descend((criterion(p0, z1) + criterion(p1, z0)) / 2, optimizer)

    return step


def swav(recipe: Any, images: list[Tensor]) -> Step:
    backbone, width = backbone_of(recipe)
    model = Branch(backbone, modules.SwaVProjectionHead(width, recipe.hidden, recipe.projection))
    prototypes = modules.SwaVPrototypes(recipe.projection, recipe.prototypes)
    criterion = SwaVLoss()
    optimizer = optimiser(recipe, [*model.parameters(), *prototypes.parameters()])

    def step() -> None:
        prototypes.normalize()
        scores = [prototypes(nn.functional.normalize(model(view), dim=1, p=2)) for view in images]
        descend(criterion(scores[:2], scores[2:]), optimizer)

    return step


def densecl(recipe: Any, images: list[Tensor]) -> Step:
    backbone, width = backbone_of(recipe)
    pair = [modules.DenseCLProjectionHead(width, recipe.hidden, recipe.projection) for _ in range(2)]
    model = nn.ModuleDict({"backbone": backbone, "image": pair[0], "grid": pair[1]})
    keys = copy.deepcopy(model).requires_grad_(False)
    memory = (recipe.queue_length, recipe.projection)
    criteria = [NTXentLoss(temperature=0.2, memory_bank_size=memory) for _ in range(2)]
    optimizer = optimiser(recipe, model.parameters())

    def branch(network: nn.ModuleDict, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = backbones.features(network["backbone"], view)
        return features.dense, network["image"](features.pooled), network["grid"](features.dense)

    def step() -> None:
        update_momentum(model, keys, m=0.99)
        features, image, grid = branch(model, images[0])
        with torch.no_grad():
            key_features, key_image, key_grid = branch(keys, images[1])
            matched = select_most_similar(features, key_features, key_grid)
        local = criteria[1](grid.flatten(0, 1), matched.flatten(0, 1))
        descend((criteria[0](image, key_image) + local) / 2, optimizer)

    return step


LOOPS: dict[str, Callable[[Any, list[Tensor]], Step]] = {
    "densecl": densecl,
    "byol": byol,
    "simsiam": simsiam,
    "swav": swav,
    "dino": dino,
    "barlowtwins": barlowtwins,
    "vicreg": vicreg,
}
