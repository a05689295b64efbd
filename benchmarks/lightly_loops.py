"""lightly's own example loops, one optimiser step each, from lightly's heads, losses and EMA.

Each takes the method's recipe and views (images [B, 3, h, w], masks and places as our collators make
them), and gives a step to call; network, sizes and memory layout are the recipe's. The optimiser is of the
recipe's class, lightly's own LARS for ours and for LARC, so that the same update is timed on both sides; no
schedule, no clipping, no logging, no checkpointing, no look at whether the loss is finite.

These are all the methods of ours that lightly has an example of. Its MoCo is version 2 (one direction and a
queue), ours is version 3; of EsViT, Mugs, MEC and ReSA it has none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightly.loss import (
    BarlowTwinsLoss,
    DINOLoss,
    IBOTPatchLoss,
    NegativeCosineSimilarity,
    NTXentLoss,
    SwaVLoss,
    VICRegLLoss,
    VICRegLoss,
)
from lightly.models import modules, utils
from lightly.models.modules import heads
from lightly.models.modules.ijepa_timm import IJEPAPredictorTIMM
from lightly.models.utils import select_most_similar, update_momentum
from lightly.utils.lars import LARS
from torch import Tensor, nn
from torch.nn import functional as F

from dse_monitor.trainers import backbones
from dse_monitor.trainers.method import Views

Step = Callable[[], None]


def backbone_of(recipe: Any, **options: Any) -> tuple[nn.Module, int]:
    """The recipe's network, in the memory layout our engine gives it, and its width."""
    spec = backbones.describe(recipe.backbone, recipe.image_size, **options)
    network = backbones.build(spec)
    if spec.family == "conv":
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return network, spec.width


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


def dino(recipe: Any, views: Views) -> Step:
    def branch() -> Branch:
        backbone, width = backbone_of(recipe)
        widths = (width, recipe.head_hidden, recipe.head_bottleneck, recipe.prototypes)
        return Branch(backbone, modules.DINOProjectionHead(*widths, norm_last_layer=recipe.norm_last_layer))

    student, teacher = branch(), branch().requires_grad_(False)
    teacher.load_state_dict(student.state_dict())
    criterion = DINOLoss(output_dim=recipe.prototypes, warmup_teacher_temp_epochs=5)
    optimizer = optimiser(recipe, student.parameters())

    def step() -> None:
        update_momentum(student, teacher, m=0.99)
        with torch.no_grad():
            targets = [teacher(view) for view in views.images[:2]]
        loss = criterion(targets, [student(view) for view in views.images], epoch=0)
        loss.backward()
        student.head.cancel_last_layer_gradients(current_epoch=0)  # pyright: ignore[reportCallIssue]
        optimizer.step()
        optimizer.zero_grad()

    return step


def barlowtwins(recipe: Any, views: Views) -> Step:
    backbone, width = backbone_of(recipe)
    w = recipe.projector_width
    model = Branch(backbone, modules.BarlowTwinsProjectionHead(width, w, w))
    criterion, optimizer = BarlowTwinsLoss(), optimiser(recipe, model.parameters())
    return lambda: descend(criterion(model(views.images[0]), model(views.images[1])), optimizer)


def vicreg(recipe: Any, views: Views) -> Step:
    backbone, width = backbone_of(recipe)
    w = recipe.expander_width
    model = Branch(backbone, heads.VICRegProjectionHead(width, w, w, num_layers=3))
    criterion, optimizer = VICRegLoss(), optimiser(recipe, model.parameters())
    return lambda: descend(criterion(model(views.images[0]), model(views.images[1])), optimizer)


def simsiam(recipe: Any, views: Views) -> Step:
    backbone, width = backbone_of(recipe)
    model = Branch(backbone, modules.SimSiamProjectionHead(width, width, recipe.projection))
    predictor = modules.SimSiamPredictionHead(recipe.projection, recipe.predictor_hidden, recipe.projection)
    criterion = NegativeCosineSimilarity()
    optimizer = optimiser(recipe, [*model.parameters(), *predictor.parameters()])

    def step() -> None:
        z0, z1 = model(views.images[0]), model(views.images[1])
        p0, p1 = predictor(z0), predictor(z1)
        descend((criterion(z0.detach(), p1) + criterion(z1.detach(), p0)) / 2, optimizer)

    return step


def byol(recipe: Any, views: Views) -> Step:
    backbone, width = backbone_of(recipe)
    model = Branch(backbone, modules.BYOLProjectionHead(width, recipe.hidden, recipe.projection))
    predictor = modules.BYOLPredictionHead(recipe.projection, recipe.hidden, recipe.projection)
    target = copy.deepcopy(model).requires_grad_(False)
    criterion = NegativeCosineSimilarity()
    optimizer = optimiser(recipe, [*model.parameters(), *predictor.parameters()])

    def step() -> None:
        update_momentum(model, target, m=0.99)
        p0, p1 = predictor(model(views.images[0])), predictor(model(views.images[1]))
        with torch.no_grad():
            z0, z1 = target(views.images[0]), target(views.images[1])
        descend((criterion(p0, z1) + criterion(p1, z0)) / 2, optimizer)

    return step


def swav(recipe: Any, views: Views) -> Step:
    backbone, width = backbone_of(recipe)
    model = Branch(backbone, modules.SwaVProjectionHead(width, recipe.hidden, recipe.projection))
    prototypes = modules.SwaVPrototypes(recipe.projection, recipe.prototypes)
    criterion = SwaVLoss()
    optimizer = optimiser(recipe, [*model.parameters(), *prototypes.parameters()])

    def step() -> None:
        prototypes.normalize()
        scores = [prototypes(F.normalize(model(view), dim=1, p=2)) for view in views.images]
        descend(criterion(scores[:2], scores[2:]), optimizer)

    return step


def densecl(recipe: Any, views: Views) -> Step:
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
        features, image, grid = branch(model, views.images[0])
        with torch.no_grad():
            key_features, key_image, key_grid = branch(keys, views.images[1])
            matched = select_most_similar(features, key_features, key_grid)
        local = criteria[1](grid.flatten(0, 1), matched.flatten(0, 1))
        descend((criteria[0](image, key_image) + local) / 2, optimizer)

    return step


def vicregl(recipe: Any, views: Views) -> Step:
    backbone, width = backbone_of(recipe)
    w, local = recipe.expander_width, recipe.map_expander_width
    model = nn.ModuleDict(
        {
            "backbone": backbone,
            "whole": modules.BarlowTwinsProjectionHead(width, w, w),
            "local": heads.VicRegLLocalProjectionHead(width, local, local),
        }
    )
    criterion, optimizer = VICRegLLoss(num_matches=recipe.matches), optimiser(recipe, model.parameters())
    grids = [views.extra[f"places_{v}"] for v in range(len(views.images))]

    def branch(view: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        features = backbones.features(model["backbone"], view)
        maps = features.dense.unflatten(1, grid.shape[1:3])
        return model["whole"](features.pooled), model["local"](maps)

    def step() -> None:
        features = [branch(view, grid) for view, grid in zip(views.images, grids, strict=True)]
        descend(criterion(features[:2], grids[:2], features[2:], grids[2:]), optimizer)

    return step


def mae(recipe: Any, views: Views) -> Step:
    backbone, width = backbone_of(recipe)
    patch: int = backbone.patch_embed.patch_size[0]  # pyright: ignore
    encoder = modules.MaskedVisionTransformerTIMM(backbone)  # pyright: ignore[reportArgumentType]
    length, inner = encoder.sequence_length, recipe.decoder_width
    decoder = modules.MaskedVisionTransformerDecoderTIMM(
        length - 1, inner, recipe.decoder_depth, recipe.decoder_heads, num_prefix_tokens=1
    )
    embed, predict = nn.Linear(width, inner), nn.Linear(inner, 3 * patch**2)
    model = nn.ModuleList([encoder, embed, decoder, predict])
    criterion, optimizer = nn.MSELoss(), optimiser(recipe, model.parameters())

    def step() -> None:
        (images,) = views.images
        kept, hidden = utils.random_token_mask(
            (len(images), length), mask_ratio=recipe.mask_ratio, device=images.device
        )
        latent = embed(encoder.encode(images, idx_keep=kept))
        tokens = utils.set_at_index(latent.new_zeros(len(images), length, inner), kept, latent)
        predictions = predict(utils.get_at_index(decoder(tokens, idx_mask=hidden), hidden))
        targets = utils.get_at_index(utils.patchify(images, patch), hidden - 1)
        descend(criterion(predictions, targets), optimizer)

    return step


def ijepa(recipe: Any, views: Views) -> Step:
    backbone, width = backbone_of(recipe, class_token=False, global_pool="avg", fc_norm=False)
    spec = backbones.describe(recipe.backbone, recipe.image_size)
    encoder = modules.MaskedVisionTransformerTIMM(backbone)  # pyright: ignore[reportArgumentType]
    target = copy.deepcopy(encoder).requires_grad_(False)
    assert spec.num_heads is not None
    predictor = IJEPAPredictorTIMM(
        encoder.sequence_length, recipe.predictor_depth, width, recipe.predictor_width, spec.num_heads
    )
    criterion = nn.SmoothL1Loss()
    optimizer = optimiser(recipe, [*encoder.parameters(), *predictor.parameters()])
    contexts, targets = (
        [views.extra[f"{kind}_{i}"] for i in range(count)]
        for kind, count in (("context", recipe.contexts), ("target", recipe.targets))
    )

    def step() -> None:
        (images,) = views.images
        (context,) = contexts
        predictions = predictor(encoder.encode(images, idx_keep=context), contexts, targets)
        with torch.no_grad():
            tokens = target.encode(images)
            wanted = utils.apply_masks(F.layer_norm(tokens, tokens.shape[-1:]), targets)
            wanted = utils.repeat_interleave_batch(wanted, len(images), repeat=len(contexts))
        descend(criterion(predictions, wanted), optimizer)
        update_momentum(encoder, target, m=0.99)

    return step


def ibot(recipe: Any, views: Views) -> Step:
    """Only masked patches pass through the heads, as in lightly's example; masks are those of our views."""
    spec = backbones.describe(recipe.backbone, recipe.image_size)

    def branch() -> nn.ModuleDict:
        network = backbones.build(spec, dynamic_img_size=True)
        widths = (spec.width, recipe.head_hidden, recipe.head_bottleneck, recipe.prototypes)
        return nn.ModuleDict(
            {
                "backbone": modules.MaskedVisionTransformerTIMM(
                    network,  # pyright: ignore[reportArgumentType]
                    antialias=False,
                    pos_embed_initialization="skip",
                ),
                "head": modules.DINOProjectionHead(*widths, norm_last_layer=recipe.norm_last_layer),
            }
        )

    student, teacher = branch(), branch().requires_grad_(False)
    teacher.load_state_dict(student.state_dict())
    encode: Any = student["backbone"].encode
    target: Any = teacher["backbone"].encode
    across, patches = DINOLoss(recipe.prototypes), IBOTPatchLoss(recipe.prototypes)
    optimizer = optimiser(recipe, student.parameters())

    def step() -> None:
        crops, small = torch.cat(views.images[:2]), torch.cat(views.images[2:])
        blocks = views.extra["masks"].transpose(0, 1).flatten(0, 1)  # [2B, rows, columns]
        mask = F.pad(blocks.flatten(1), (1, 0))  # the cls token is never hidden
        with torch.no_grad():
            tokens = target(crops)
            teacher_cls, teacher_patches = teacher["head"](tokens[:, 0]), teacher["head"](tokens[mask])
        tokens = encode(crops, mask=mask)
        cls = [student["head"](tokens[:, 0]), student["head"](encode(small)[:, 0])]
        loss = across(teacher_cls.chunk(2), torch.cat(cls).chunk(len(views.images)), teacher_temp=0.07)
        loss = loss + patches(teacher_patches, student["head"](tokens[mask]), blocks, teacher_temp=0.07)
        descend(loss, optimizer)
        update_momentum(student, teacher, m=0.99)

    return step


Loop = Callable[[Any, Views], Step]

LOOPS: dict[str, Loop] = {
    "densecl": densecl,
    "byol": byol,
    "simsiam": simsiam,
    "swav": swav,
    "dino": dino,
    "ibot": ibot,
    "mae": mae,
    "ijepa": ijepa,
    "barlowtwins": barlowtwins,
    "vicreg": vicreg,
    "vicregl": vicregl,
}

# what our recipes do and lightly's examples do not: left out, so that both sides compute the same
ALIKE: dict[str, dict[str, Any]] = {
    "mae": {"normalised_pixels": False},
    "vicregl": {"all_feature_matches": False},  # lightly keeps as many by feature as by place
}
