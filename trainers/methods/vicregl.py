"""VICRegL: VICReg on whole images and on positions matched by feature and by place.

Bardes, Ponce and LeCun, "VICRegL: Self-Supervised Learning of Local Visual Features", NeurIPS 2022,
arXiv 2210.01571. Reference: facebookresearch/VICRegL @ 803ae4c, main_vicregl.py, transforms.py, utils.py.
The authors' online classifier is left out: it needs labels and sends no gradient to the network.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import timm
import torch
from PIL import Image
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim, views
from dse_monitor.trainers.blocks.heads import mlp
from dse_monitor.trainers.blocks.objectives import off_diagonal, variance_hinge
from dse_monitor.trainers.distributed import gather_with_gradient
from dse_monitor.trainers.method import Method, ParameterGroup, Plan, Progress, Recipe, StepOutput, Views

ANCHORS = 2  # views that are paired with every other view


@dataclass(frozen=True, kw_only=True)
class VICRegLRecipe(Recipe):
    """VICRegL's numbers: the README's ResNet-50 command.

    Attributes:
        final_lr_fraction: where the learning rate ends, as a fraction of its peak.
        global_scale: area range of the two large crops.
        local_size: side of the small crops, pixels.
        local_crops: small crops per image.
        local_scale: area range of the small crops.
        flip_grid: mirror the places of a flipped crop; the authors do not.
        expander_width: width of the global expander's three layers.
        map_expander_width: width of the local expander's three layers.
        global_weight: alpha, the share of the global loss.
        matches: best location matches kept for the first and for the second view of a pair.
        all_feature_matches: keep every feature match rather than as many as ``matches``.
        drop_path: stochastic depth, of a ConvNeXt only.
        layer_scale: start of its layer scale, of a ConvNeXt only; 0 for none.
        invariance_weight: of the squared distances.
        variance_weight: of the variance hinges.
        covariance_weight: of the covariance penalties.
    """

    backbone: str = "resnet50"  # --arch
    batch_size: int = 512  # README, --batch-size
    epochs: int = 100  # --epochs
    warmup_epochs: int = 10  # --warmup-epochs
    lr: float = 0.3  # README, --base-lr, per 256 images
    final_lr_fraction: float = 0.001  # --end-lr-ratio
    weight_decay: float = 1e-6  # fixed in the code for LARS
    optimizer: str = "lars"  # README
    global_scale: tuple[float, float] = (0.08, 1.0)  # README
    local_size: int = 96  # --size-crops
    local_crops: int = 0  # README (ConvNeXt: 6)
    local_scale: tuple[float, float] = (0.08, 0.4)  # --min_scale_crops, --max_scale_crops
    flip_grid: bool = False  # --no-flip-grid 1
    expander_width: int = 8192  # --mlp
    map_expander_width: int = 512  # --maps-mlp
    global_weight: float = 0.75  # --alpha (0.9 also released)
    matches: tuple[int, int] = (20, 4)  # --num-matches
    all_feature_matches: bool = True  # --l2_all_matches
    drop_path: float = 0.1  # --drop-path-rate
    layer_scale: float = 0.0  # --layer-scale-init-value
    invariance_weight: float = 25.0  # --inv-coeff
    variance_weight: float = 25.0  # --var-coeff
    covariance_weight: float = 1.0  # --cov-coeff

    presets: ClassVar[tuple[str, ...]] = ("tiny", "resnet50_300", "convnext")

    @classmethod
    def tiny(cls) -> VICRegLRecipe:
        """A four-block ResNet on 64-px scenes."""
        return dataclasses.replace(
            cls(),
            backbone="resnet_mini",
            image_size=64,
            batch_size=64,
            epochs=10,
            warmup_epochs=1,
            lr=4.0,  # a small batch, and LARS takes small steps
            expander_width=256,
            map_expander_width=64,
            matches=(3, 1),  # of a 2 x 2 grid
        )

    @classmethod
    def resnet50_300(cls) -> VICRegLRecipe:
        """The README's 300-epoch command for ResNet-50, four machines."""
        return dataclasses.replace(cls(), batch_size=2048, epochs=300, lr=0.2)

    @classmethod
    def convnext(cls) -> VICRegLRecipe:
        """The defaults of main_vicregl.py: ConvNeXt-S, two large and six small crops, AdamW.

        The README's commands change batch and lr: 384 and 7.5e-4 for 100 epochs, 576 and 5e-4 for 400.
        """
        return dataclasses.replace(
            cls(),
            backbone="convnext_small",  # --arch
            optimizer="adamw",  # --optimizer
            lr=5e-4,  # --base-lr
            weight_decay=0.05,  # --weight-decay
            global_scale=(0.4, 1.0),  # --min_scale_crops, --max_scale_crops
            local_crops=6,  # --num-crops
        )


class Terms(NamedTuple):
    """Invariance, variance and covariance, unweighted.

    Attributes:
        invariance: mean squared distance.
        variance: mean hinge on the standard deviation.
        covariance: mean squared off-diagonal covariance, times C - 1.
    """

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def covariance_penalty(x: Tensor) -> Tensor:
    """Sum of squared off-diagonal covariances over C: [B, C], or [B, P, C] slot by slot; mean over slots."""
    x = x - x.mean(0)
    matrix = torch.einsum("n...c,n...d->...cd", x, x) / (len(x) - 1)
    return (off_diagonal(matrix).square().sum(-1) / x.shape[-1]).mean()


def global_terms(embeddings: Sequence[Tensor]) -> Terms:
    """VICReg over V crops: distances of pairs (first two, any other), the rest averaged over crops.

    Args:
        embeddings: V tensors [B, C] of this process.
    """
    embeddings = [e.float() for e in embeddings]
    pairs = [
        F.mse_loss(embeddings[i], embeddings[j])
        for i in range(ANCHORS)
        for j in range(len(embeddings))
        if j != i
    ]
    joined = [gather_with_gradient(e) for e in embeddings]
    return Terms(
        torch.stack(pairs).mean(),
        torch.stack([variance_hinge(e) for e in joined]).mean(),
        torch.stack([covariance_penalty(e) for e in joined]).mean(),
    )


def matched_terms(x: Tensor, y: Tensor) -> Terms:
    """VICReg on matched positions: statistics over the batch for each match slot.

    Args:
        x: [B, P, C].
        y: [B, P, C].
    """
    invariance = F.mse_loss(x, y)
    joined = [gather_with_gradient(z) for z in (x, y)]
    return Terms(
        invariance,
        torch.stack([variance_hinge(z) for z in joined]).mean(),
        torch.stack([covariance_penalty(z) for z in joined]).mean(),
    )


class Matches(NamedTuple):
    """Pairs of positions.

    Attributes:
        source: int64 [B, P], in order of position.
        candidate: int64 [B, P], the nearest candidate of each.
    """

    source: Tensor
    candidate: Tensor


@torch.no_grad()
def nearest(source: Tensor, candidates: Tensor, keep: int | None) -> Matches:
    """Each source position with its nearest candidate, the ``keep`` closest pairs of each image.

    Equal distances, as overlapping grids have them, fall as torch's topk and sort let them fall, like the
    authors'.

    Args:
        source: [B, N, D], features or places.
        candidates: [B, M, D].
        keep: number of pairs; all if None, or -1 as released.
    """
    distances = torch.cdist(source.float(), candidates.float())
    distance, candidate = (x.squeeze(-1) for x in distances.topk(1, largest=False))
    count = distance.shape[1] if keep is None or keep < 0 else min(keep, distance.shape[1])
    chosen = distance.sort(dim=1).indices[:, :count].sort(dim=1).values
    return Matches(chosen, candidate.gather(1, chosen))


def take(maps: Tensor, index: Tensor) -> Tensor:
    """Positions of maps [B, N, C] at index [B, P]: [B, P, C]."""
    return maps.gather(1, index[..., None].expand(-1, -1, maps.shape[-1]))


def local_terms(
    maps: Sequence[Tensor], places: Sequence[Tensor], matches: tuple[int, int], *, all_feature_matches: bool
) -> Terms:
    """Feature-matched plus location-matched terms, mean over pairs (first two views, any other).

    Args:
        maps: V projected maps [B, N_v, C].
        places: V grids [B, N_v, 2] in pixels of the original image.
        matches: location matches kept for the first and the second view of a pair.
        all_feature_matches: keep all feature matches.
    """
    maps = [m.float() for m in maps]
    feature_matches = (None, None) if all_feature_matches else matches
    totals = []
    for i in range(ANCHORS):
        for j in range(len(maps)):
            if j == i:
                continue
            parts = []
            for (a, b), by_feature, by_place in zip(((i, j), (j, i)), feature_matches, matches, strict=True):
                for pairs in (
                    nearest(maps[a], maps[b], by_feature),
                    nearest(places[a], places[b], by_place),
                ):
                    terms = matched_terms(take(maps[a], pairs.source), take(maps[b], pairs.candidate))
                    parts.append(torch.stack(terms))
            totals.append(torch.stack(parts).sum(0) / 2)  # two directions averaged, two kinds of match summed
    return Terms(*torch.stack(totals).mean(0))


def places_of(box: tuple[int, int, int, int], grid: int, *, flipped: bool = False) -> Tensor:
    """Centres of a crop's cells in the original image: [grid, grid, 2], vertical then horizontal, pixels.

    Args:
        box: (top, left, height, width) of the crop.
        grid: cells per side.
        flipped: mirror the columns.
    """
    top, left, height, width = box
    centres = (torch.arange(grid) + 0.5) / grid
    rows, columns = torch.meshgrid(top + centres * height, left + centres * width, indexing="ij")
    return torch.stack([rows, columns.flip(1) if flipped else columns], -1)


def cells(network: nn.Module, size: int) -> int:
    """Cells per side of a network's map of square crops: stages round up in some networks, down in others.

    Args:
        network: on the meta device, in evaluation mode.
        size: side of the crops, pixels.
    """
    with torch.no_grad():
        return math.isqrt(backbones.shape_of_features(network, size).dense.shape[1])


@dataclass(frozen=True)
class LocatedCrops:
    """Crops that remember where they came from: ``extra["places_v"]`` is float [grid, grid, 2].

    Attributes:
        crops: the views.
        grids: cells per side of each view's feature map.
        flip_grid: mirror the places of flipped crops.
    """

    crops: tuple[views.Crop, ...]
    grids: tuple[int, ...]
    flip_grid: bool

    def __call__(self, image: Image.Image) -> Views:
        """Views of an RGB image."""
        located = [crop.locate(image) for crop in self.crops]
        places = {
            f"places_{v}": places_of(crop.box, grid, flipped=self.flip_grid and crop.flipped)
            for v, (crop, grid) in enumerate(zip(located, self.grids, strict=True))
        }
        return Views([crop.image for crop in located], places)


def learning_rates(
    peak: float, final_fraction: float, steps: int, warmup_steps: int, length: int
) -> np.ndarray:
    """A line from 0, then a cosine to ``final_fraction`` of the peak at ``steps``, then that value."""
    t = np.minimum(np.arange(length, dtype=np.float64), steps)
    share = (t - warmup_steps) / max(steps - warmup_steps, 1)
    falling = peak * (final_fraction + (1 - final_fraction) * 0.5 * (1 + np.cos(np.pi * share)))
    return np.where(t < warmup_steps, peak * t / max(warmup_steps, 1), falling)


class Output(NamedTuple):
    """What the network says of one view.

    Attributes:
        embedding: [B, C]; None without a global loss.
        maps: projected maps [B, N, C']; None without a local loss.
        dense: tokens of the backbone [B, N, D].
    """

    embedding: Tensor | None
    maps: Tensor | None
    dense: Tensor


class Network(nn.Module):
    """Backbone, an expander for pooled features and one for positions, each only where its loss is on."""

    def __init__(
        self, backbone: nn.Module, projector: nn.Module | None, maps_projector: nn.Module | None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.maps_projector = maps_projector

    def forward(self, images: Tensor) -> Output:
        """Images [B, 3, h, w], all of one view."""
        pooled, dense = backbones.features(self.backbone, images)
        embedding = None if self.projector is None else self.projector(pooled)
        maps = None
        if self.maps_projector is not None:
            maps = self.maps_projector(dense.flatten(0, 1)).unflatten(0, dense.shape[:2])
        return Output(embedding, maps, dense)


def describe(recipe: VICRegLRecipe) -> backbones.Backbone:
    """The recipe's network; a ConvNeXt as in convnext.py: every position normed before pooling."""
    families = ("conv", "swin")
    spec = backbones.describe(recipe.backbone, recipe.image_size, families)
    if not is_convnext(spec):
        return spec
    options: dict[str, Any] = {"head_norm_first": True, "ls_init_value": recipe.layer_scale or None}
    return backbones.describe(recipe.backbone, recipe.image_size, families, **options)


def is_convnext(spec: backbones.Backbone) -> bool:
    """Whether a network is a ConvNeXt, which has a recipe of its own."""
    return timm.models.model_entrypoint(spec.name).__module__ == ConvNeXt.__module__


def expander(width: int, hidden: int, backbone: nn.Module) -> nn.Sequential:
    """Three layers [width, hidden, hidden, hidden]; batch norm if the backbone has it, else layer norm."""
    batch_norm = any(isinstance(module, _BatchNorm) for module in backbone.modules())
    return mlp((width, *[hidden] * 3), norm=batch_norm or nn.LayerNorm, last_bias=False)


class VICRegL(Method):
    """VICReg with local features."""

    recipe_type = VICRegLRecipe
    std = (0.228, 0.224, 0.225)  # transforms.py
    batch_coupled = "batch norm, and statistics over the batch"
    differences = (
        "Without the online classifier, which needs labels and sends no gradient to the network. The "
        "README's ResNet-50 run is the default, the defaults of the code are `--preset convnext`. Any "
        "network without batch norm gets ConvNeXt's layer norm in the expanders. The released fast form of "
        "the statistics, off by default, overwrites a sum and is left out."
    )

    def __init__(self, recipe: VICRegLRecipe) -> None:
        super().__init__(recipe)
        self.recipe = r = recipe
        if not 0 <= r.global_weight <= 1:
            raise ValueError(f"global_weight is the global loss's share, 0 to 1, got {r.global_weight}")
        spec = self.backbone_spec = describe(r)
        options: dict[str, Any] = {"drop_path_rate": r.drop_path} if is_convnext(spec) else {}
        backbone = backbones.build(spec, **options)
        self.student = Network(
            backbone,
            expander(spec.width, r.expander_width, backbone) if r.global_weight > 0 else None,
            expander(spec.width, r.map_expander_width, backbone) if r.global_weight < 1 else None,
        )

    def views(self) -> LocatedCrops:
        """BYOL's asymmetric pair of large crops, then small ones alternating in the same way."""
        r = self.recipe
        pair = views.byol_pair(r.image_size, r.global_scale)
        small = views.byol_pair(r.local_size, r.local_scale)
        crops = (*pair, *[small[i % 2] for i in range(r.local_crops)])
        with torch.device("meta"):
            network = backbones.build(self.backbone_spec).eval()
        grids = {size: cells(network, size) for size in (r.image_size, r.local_size)}
        return LocatedCrops(crops, tuple(grids[crop.size] for crop in crops), r.flip_grid)

    def forward(self, views: Views, progress: Progress) -> StepOutput:
        """One pass per view: batch statistics are per view. Dense: maps of the large crops, [2B, N, D]."""
        outputs = [self.student(images) for images in views.images]
        r, losses = self.recipe, {}
        with torch.autocast(outputs[0].dense.device.type, enabled=False):
            if r.global_weight > 0:
                losses["global_loss"] = self._weighted(global_terms([o.embedding for o in outputs]))
            if r.global_weight < 1:
                places = [views.extra[f"places_{v}"].flatten(1, 2) for v in range(len(outputs))]
                maps = [o.maps for o in outputs]
                terms = local_terms(maps, places, r.matches, all_feature_matches=r.all_feature_matches)
                losses["local_loss"] = self._weighted(terms)
            shares = {"global_loss": r.global_weight, "local_loss": 1 - r.global_weight}
            loss = torch.stack([shares[name] * value for name, value in losses.items()]).sum()
        dense = torch.cat([o.dense for o in outputs[:ANCHORS]])
        return StepOutput(loss, dense, {name: value.detach() for name, value in losses.items()})

    def _weighted(self, terms: Terms) -> Tensor:
        r = self.recipe
        return (
            r.invariance_weight * terms.invariance
            + r.variance_weight * terms.variance
            + r.covariance_weight * terms.covariance
        )

    def schedules(self, plan: Plan) -> dict[str, np.ndarray]:
        """Steps are counted from images, as released."""
        r = self.recipe
        steps, warmup = (n * plan.images // plan.batch_size for n in (plan.epochs, r.warmup_epochs))
        peak = r.lr * plan.batch_size / 256
        return {
            "lr": learning_rates(peak, r.final_lr_fraction, steps, warmup, plan.total_steps),
            "weight_decay": optim.constant(r.weight_decay, plan.total_steps),
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """One-dimensional parameters are not decayed, and not adapted where LARS would."""
        return optim.split_by_shape(self.student.named_parameters())
