"""Mugs: instance, local-group and group discrimination on one student and teacher.

Zhou et al., "Mugs: A Multi-Granular Self-Supervised Learning Framework", arXiv 2203.14415.
Reference: sail-sg/mugs @ 10ab634, main.py, src/loss.py, src/model.py, src/vision_transformer.py,
src/multicropdataset.py, src/optimizer.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim, teacher, views
from dse_monitor.trainers.blocks.centre import Centre
from dse_monitor.trainers.blocks.heads import ContrastHead, DINOHead
from dse_monitor.trainers.blocks.objectives import centred_softmax, mean_over_distinct, pair_cross_entropies
from dse_monitor.trainers.blocks.queues import KeyQueue
from dse_monitor.trainers.blocks.relations import Memory, Relation
from dse_monitor.trainers.distributed import gather
from dse_monitor.trainers.method import Method, ParameterGroup, Plan, Progress, Recipe, StepOutput, Views

LARGE_CROPS = 2  # of the teacher, and of the student


@dataclass(frozen=True, kw_only=True)
class MugsRecipe(Recipe):
    """Mugs' numbers: the README's 800-epoch ViT-S/16 command.

    Attributes:
        final_lr: where the learning rate ends.
        patch_lr_scale: factor on the learning rate of the patch projection.
        final_weight_decay: where the weight decay ends.
        local_size: side of the local crops, pixels.
        local_crops: local crops per image, student only.
        global_scale: area range of the global crops.
        local_scale: area range of the local crops.
        weak_share: probability that a student's crops are weak ones; one draw for its two large crops.
        same_large_crops: give the student the teacher's large crops.
        randaugment: of the strong crops, in timm's notation.
        erase: probability of random erasing in a strong crop.
        instance_weight: switches the instance loss on and counts in the mean of losses, without scaling it.
        local_group_weight: the same for the local-group loss.
        group_weight: the same for the group loss.
        head_hidden: hidden width of all projectors.
        projection: output width of the instance and local-group projectors.
        predictor_hidden: hidden width of their predictors.
        prototypes: output width of the group head.
        head_bottleneck: its width before the prototypes.
        norm_last_layer: keep the prototypes' scale at 1.
        queue_length: keys in each of the two queues.
        contrast_temperature: of both contrasts.
        memory_length: remembered images from which neighbours are taken.
        neighbours: neighbours fused with an image's token.
        student_temperature: of the student's softmax over prototypes.
        warmup_teacher_temperature: teacher temperature of the first epoch.
        teacher_temperature: teacher temperature after its warmup.
        teacher_temperature_epochs: length of that warmup.
        centre_momentum: of the centre's moving mean.
        teacher_momentum: of the teacher's EMA at the start; a cosine takes it to 1.
        clip: largest gradient norm of one parameter tensor; 0 for none.
        late_clip_scale: factor on it for ViT-L after ``late_clip_epoch``.
        late_clip_epoch: the last epoch, counted from 0, of ViT-L's looser clipping.
        freeze_last_layer: epochs during which the prototypes stay.
        drop_path: stochastic depth of the student.
    """

    backbone: str = "vit_small_patch16_224"  # --arch, --patch_size
    batch_size: int = 1024  # README: 16 GPUs x 64
    epochs: int = 800  # --epochs
    warmup_epochs: int = 10  # --warmup_epochs
    lr: float = 8e-4  # --lr, per 256 images
    final_lr: float = 1e-6  # --min_lr
    patch_lr_scale: float = 0.2  # --patch_embed_lr_mult
    weight_decay: float = 0.04  # --weight_decay
    final_weight_decay: float = 0.1  # --weight_decay_end (100 epochs: 0.2)
    local_size: int = 96  # multicropdataset.py
    local_crops: int = 10  # --local_crops_number
    global_scale: tuple[float, float] = (0.25, 1.0)  # --global_crops_scale
    local_scale: tuple[float, float] = (0.05, 0.25)  # --local_crops_scale
    weak_share: float = 0.5  # --prob
    same_large_crops: bool = False  # --vanilla_weak_augmentation
    randaugment: str = "rand-m9-mstd0.5-inc1"  # --timm_auto_augment_par
    erase: float = 0.25  # --re_prob
    instance_weight: float = 1.0  # --loss_weights
    local_group_weight: float = 1.0  # --loss_weights
    group_weight: float = 1.0  # --loss_weights
    head_hidden: int = 2048  # src/model.py
    projection: int = 256  # --instance_out_dim, --local_group_out_dim
    predictor_hidden: int = 4096  # src/model.py
    prototypes: int = 65536  # --group_out_dim
    head_bottleneck: int = 256  # --group_bottleneck_dim
    norm_last_layer: bool = False  # --norm_last_layer
    queue_length: int = 65536  # --instance_queue_size, --local_group_queue_size
    contrast_temperature: float = 0.2  # --instance_temp, --local_group_temp
    memory_length: int = 65536  # --local_group_queue_size
    neighbours: int = 8  # --local_group_knn_top_n
    student_temperature: float = 0.1  # --group_student_temp
    warmup_teacher_temperature: float = 0.04  # --group_warmup_teacher_temp
    teacher_temperature: float = 0.07  # --group_teacher_temp (100 epochs: 0.04)
    teacher_temperature_epochs: int = 30  # --group_warmup_teacher_temp_epochs
    centre_momentum: float = 0.9  # src/loss.py
    teacher_momentum: float = 0.996  # --momentum_teacher
    clip: float = 3.0  # --clip_grad
    late_clip_scale: float = 0.1  # main.py: train_one_epoch, ViT-L only
    late_clip_epoch: int = 100  # main.py: train_one_epoch, ViT-L only
    freeze_last_layer: int = 1  # --freeze_last_layer
    drop_path: float = 0.1  # --drop_path_rate

    presets: ClassVar[tuple[str, ...]] = ("tiny", "vit_small_100", "vit_base", "vit_large")

    @classmethod
    def tiny(cls) -> MugsRecipe:
        """A four-block ViT on 64-px scenes."""
        return dataclasses.replace(
            cls(),
            backbone="vit_mini_patch8",
            image_size=64,
            batch_size=64,
            epochs=10,
            warmup_epochs=1,
            lr=4e-3,  # x 64 / 256
            local_size=32,
            local_crops=4,
            head_hidden=256,
            projection=64,
            predictor_hidden=256,
            prototypes=1024,
            head_bottleneck=64,
            queue_length=512,
            memory_length=512,
            teacher_temperature_epochs=3,
            teacher_momentum=0.98,  # a tenth of the steps needs a faster teacher
            drop_path=0.0,
        )

    @classmethod
    def vit_small_100(cls) -> MugsRecipe:
        """The README's 100-epoch command, eight GPUs."""
        return dataclasses.replace(
            cls(),
            batch_size=512,
            epochs=100,
            final_weight_decay=0.2,
            teacher_temperature=0.04,
            teacher_temperature_epochs=0,
        )

    @classmethod
    def vit_base(cls) -> MugsRecipe:
        """The README's 400-epoch command."""
        return dataclasses.replace(
            cls(),
            backbone="vit_base_patch16_224",
            epochs=400,
            final_lr=2e-6,
            teacher_temperature_epochs=50,
            freeze_last_layer=3,
        )

    @classmethod
    def vit_large(cls) -> MugsRecipe:
        """The README's 250-epoch command; the gradients are clipped more tightly after epoch 100."""
        return dataclasses.replace(
            cls(),
            backbone="vit_large_patch16_224",
            batch_size=640,  # 40 GPUs x 16
            epochs=250,
            lr=1.5e-3,
            final_lr=1.5e-4,
            weight_decay=0.025,
            final_weight_decay=0.08,
            teacher_temperature_epochs=50,
            norm_last_layer=True,
            freeze_last_layer=3,
            drop_path=0.3,
        )


def granular_mean(pairs: Tensor) -> Tensor:
    """Half the mean of the large-crop pairs with different indices, half the mean of the small-crop pairs.

    Without small crops (a division by zero as released) the large ones count in full.

    Args:
        pairs: [2, V], the student's two large crops first.
    """
    large = mean_over_distinct(pairs[:, :LARGE_CROPS])
    return large if pairs.shape[1] == LARGE_CROPS else (large + pairs[:, LARGE_CROPS:].mean()) / 2


def contrast_pairs(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """InfoNCE of each student crop with each teacher view of its image against a queue: [2, V] (equation 1).

    Args:
        queries: unit vectors [V, B, C].
        keys: unit vectors [2, B, C]; no gradient.
        queue: [C, Q], unit columns, as it was before this step.
        temperature: tau.
    """
    queries, keys = queries.float(), keys.detach().float()
    positive = torch.einsum("vbc,tbc->tvb", queries, keys) / temperature
    negative = (queries @ queue / temperature).logsumexp(-1)  # once for both teacher views
    return (torch.logaddexp(positive, negative) - positive).mean(-1)


def weighted_mean(losses: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Sum of the losses whose weight is positive over the sum of those weights: weights do not multiply.

    Args:
        losses: scalars.
        weights: as many numbers, one of them positive; 0 switches a loss off.
    """
    active = [(loss, weight) for loss, weight in zip(losses, weights, strict=True) if weight > 0]
    return torch.stack([loss for loss, _ in active]).sum() / sum(weight for _, weight in active)


def clip_norm(recipe: MugsRecipe, epoch: int) -> float:
    """Largest gradient norm of one tensor in an epoch, counted from 0: ViT-L's is smaller after a while."""
    late = recipe.backbone.startswith("vit_large") and epoch > recipe.late_clip_epoch
    return recipe.clip * (recipe.late_clip_scale if late else 1.0)


class Outputs(NamedTuple):
    """What a network says of its crops, crop-major.

    Attributes:
        instance: [V * B, C].
        local_group: [V * B, C].
        group: prototype logits [V * B, K].
        dense: patch tokens of the large crops after the final norm, [2B, N, D].
    """

    instance: Tensor
    local_group: Tensor
    group: Tensor
    dense: Tensor


class Seen(NamedTuple):
    """What queues and memories will be given once the step is over, by image of all processes.

    Attributes:
        instance: keys of both teacher views [n, 2, C].
        local_group: the same for the local groups.
        own: the student's patch mean of its first large crop [n, D].
        target: the teacher's.
        weak: bool [n], whether the student's large crops were weak.
    """

    instance: Tensor
    local_group: Tensor
    own: Tensor
    target: Tensor
    weak: Tensor


class Network(nn.Module):
    """Backbone, relation block and three heads; the teacher's heads have no predictors."""

    def __init__(
        self, backbone: VisionTransformer, heads: int, recipe: MugsRecipe, *, predicts: bool
    ) -> None:
        super().__init__()
        r, width = recipe, backbone.embed_dim
        self.backbone = backbone
        inner: Any = backbone.blocks[0].mlp
        self.relation_blocks = Relation(width, heads, mlp_ratio=inner.fc1.out_features / width)
        hidden = r.predictor_hidden if predicts else None
        self.instance_head = ContrastHead(width, r.head_hidden, r.projection, hidden)
        self.local_group_head = ContrastHead(width, r.head_hidden, r.projection, hidden)
        self.group_head = DINOHead(
            width,
            r.prototypes,
            hidden=r.head_hidden,
            bottleneck=r.head_bottleneck,
            norm_last_layer=r.norm_last_layer,
        )

    def forward(self, images: Sequence[Tensor], memory: Memory) -> Outputs:
        """Crops [B, 3, h, w], equal sizes adjacent, the large ones first."""
        sizes = list(dict.fromkeys(image.shape[-1] for image in images))
        parts = [
            self.encode(torch.cat([image for image in images if image.shape[-1] == size]), memory)
            for size in sizes
        ]
        large = LARGE_CROPS * len(images[0])
        tokens = torch.cat([part[0][:, 0] for part in parts])
        related = torch.cat([part[1] for part in parts])
        return Outputs(
            self.instance_head(tokens),
            self.local_group_head(related),
            self.group_head(tokens),
            parts[0][0][:large, 1:],
        )

    def encode(self, images: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Images -> tokens [B, 1 + N, D] and related features [B, D], both after the one final norm.

        The query is the mean of all tokens, cls included, before the norm.
        """
        raw = backbones.vit_encode(self.backbone, backbones.vit_embed(self.backbone, images), norm=False)
        query = raw.mean(1)
        related = self.relation_blocks(query, memory)
        return self.backbone.norm(raw), self.backbone.norm(related)


@dataclass(frozen=True)
class MugsViews:
    """Weak views for the teacher; for the student weak or strong ones, by one coin for its large crops.

    ``extra["weak"]`` says how that coin fell. All views are float in [0, 1], since strong ones are.

    Attributes:
        weak_large: two weak large crops.
        strong_large: one strong large crop.
        weak_small: one weak small crop.
        strong_small: one strong small crop.
        small: number of small crops.
        weak_share: probability of weak crops.
        same_large: the student's large crops are the teacher's.
    """

    weak_large: tuple[views.Crop, views.Crop]
    strong_large: views.StrongCrop
    weak_small: views.Crop
    strong_small: views.StrongCrop
    small: int
    weak_share: float = 0.5
    same_large: bool = False

    def __call__(self, image: Image.Image) -> Views:
        """Teacher's two, student's two, student's small ones."""
        teacher = [crop(image) for crop in self.weak_large]
        weak = self.same_large or self._draw()
        if self.same_large:
            student = teacher
        else:
            crops = self.weak_large if weak else (self.strong_large, self.strong_large)
            student = [crop(image) for crop in crops]
        small = [(self.weak_small if self._draw() else self.strong_small)(image) for _ in range(self.small)]
        return Views([_unit(view) for view in (*teacher, *student, *small)], {"weak": torch.tensor(weak)})

    def _draw(self) -> bool:
        return bool(torch.rand(()) < self.weak_share)


def _unit(view: Tensor) -> Tensor:
    return view.float() / 255 if view.dtype == torch.uint8 else view


class Mugs(Method):
    """Multi-granular self-supervised learning."""

    recipe_type = MugsRecipe
    evaluated = "teacher.backbone."
    teachers = ("teacher",)
    differences = (
        "The memory's pointer moves twice as far as it should, as released, so that every second chunk keeps "
        "its random start; kept, so that runs agree. Its third buffer, which is never read, is left out. "
        "Without local crops the large ones count in full; released, this divides by zero. RandAugment's "
        "magnitude stops just below 10, where posterising would keep no bit, which Pillow refuses. The heads "
        "of a loss that is switched off are built and stay as they are; released, they are not built. "
        "Centre, queues and memories move after the step: the same numbers. The authors train in float32 "
        "(`--precision float32`)."
    )

    def __init__(self, recipe: MugsRecipe) -> None:
        super().__init__(recipe)
        self.recipe = r = recipe
        self._weights = (r.instance_weight, r.local_group_weight, r.group_weight)
        if max(self._weights) <= 0:
            raise ValueError(
                "Mugs needs at least one of instance_weight, local_group_weight and group_weight above 0"
            )
        spec = self.backbone_spec = backbones.describe(r.backbone, r.image_size, ("vit",), cls_token=True)
        self.student = self._network(predicts=True, drop_path_rate=r.drop_path)
        parts = (("instance_head",), ("local_group_head", "relation_blocks"), ("group_head",))
        for names, weight in zip(parts, self._weights, strict=True):
            if weight <= 0:
                for name in names:
                    self.student.get_submodule(name).requires_grad_(False)
        self.teacher = self._network(predicts=False).requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict(), strict=False)
        self.instance_queue = KeyQueue(r.projection, r.queue_length)
        self.local_group_queue = KeyQueue(r.projection, r.queue_length)
        self.student_memory = Memory(spec.width, r.memory_length, r.neighbours)
        self.teacher_memory = Memory(spec.width, r.memory_length, r.neighbours)
        self.centre = Centre(1, r.prototypes, momentum=r.centre_momentum)
        self._seen: list[Seen] = []

    def _network(self, *, predicts: bool, **options: float) -> Network:
        backbone = backbones.build(self.backbone_spec, **options)
        assert isinstance(backbone, VisionTransformer)
        assert self.backbone_spec.num_heads is not None
        assert backbone.cls_token is not None
        nn.init.trunc_normal_(backbone.cls_token, std=0.02)
        return Network(backbone, self.backbone_spec.num_heads, self.recipe, predicts=predicts)

    def views(self) -> MugsViews:
        """Two weak views for the teacher; the student's own."""
        r = self.recipe
        first, second, small = views.dino_crops(
            r.image_size, r.local_size, r.global_scale, r.local_scale, local_crops=1
        )
        return MugsViews(
            (first, second),
            views.StrongCrop(
                size=r.image_size, scale=r.global_scale, randaugment=r.randaugment, erase=r.erase
            ),
            small,
            views.StrongCrop(
                size=r.local_size, scale=r.local_scale, randaugment=r.randaugment, erase=r.erase
            ),
            r.local_crops,
            r.weak_share,
            r.same_large_crops,
        )

    def forward(self, views: Views, progress: Progress) -> StepOutput:
        """Dense: the student's patch tokens of its two large crops, [2B, N, D] crop-major."""
        r = self.recipe
        with torch.no_grad():
            target = self.teacher(views.images[:LARGE_CROPS], self.teacher_memory)
        own = self.student(views.images[LARGE_CROPS:], self.student_memory)
        crops = len(views.images) - LARGE_CROPS

        def pairs(queries: Tensor, keys: Tensor, queue: KeyQueue) -> Tensor:
            by_crop = queries.unflatten(0, (crops, -1)), keys.unflatten(0, (LARGE_CROPS, -1))
            return contrast_pairs(*by_crop, queue.columns, r.contrast_temperature)

        with torch.autocast(own.group.device.type, enabled=False):
            targets = centred_softmax(target.group, self.centre.value, progress.values["teacher_temperature"])
            group = pair_cross_entropies(
                own.group.unflatten(0, (crops, -1)),
                targets.unflatten(0, (LARGE_CROPS, -1)),
                r.student_temperature,
            )
            losses = {
                "instance_loss": pairs(own.instance, target.instance, self.instance_queue),
                "local_group_loss": pairs(own.local_group, target.local_group, self.local_group_queue),
                "group_loss": group,
            }
            losses = {name: granular_mean(value) for name, value in losses.items()}
            loss = weighted_mean(list(losses.values()), self._weights)
        self.centre.observe(target.group)
        self._remember(own, target, views.extra["weak"])
        return StepOutput(loss, own.dense, {name: value.detach() for name, value in losses.items()})

    @torch.no_grad()
    def _remember(self, own: Outputs, target: Outputs, weak: Tensor) -> None:
        first = slice(0, len(weak))  # of the two large crops
        parts = [own.dense[first].mean(1), target.dense[first].mean(1), weak]
        keys = [k.float().unflatten(0, (LARGE_CROPS, -1)).transpose(0, 1) for k in target[:2]]
        self._seen.append(Seen(*(gather(part) for part in (*keys, *parts))))

    def schedules(self, plan: Plan) -> dict[str, np.ndarray]:
        """Per iteration, but the temperature per epoch."""
        return optim.distillation(self.recipe, plan)

    def parameter_groups(self) -> list[ParameterGroup]:
        """As DINO's two groups, each split again: the patch projection learns more slowly."""
        groups = []
        for group in optim.split_by_decay(self.student.named_parameters()):
            for patches in (False, True):
                part = [(name, p) for name, p in group.parameters if ("patch_embed" in name) is patches]
                name = f"{group.name}, patch projection" if patches else group.name
                scale = self.recipe.patch_lr_scale if patches else 1.0
                groups.append(ParameterGroup(name, part, lr_scale=scale, weight_decay=group.weight_decay))
        return groups

    def after_backward(self, progress: Progress) -> None:
        """Clip each tensor by itself; leave the prototypes out of the step while they are frozen."""
        frozen = progress.epoch < self.recipe.freeze_last_layer
        clip = clip_norm(self.recipe, progress.epoch)
        optim.clip_and_freeze(self.student, clip, "last_layer" if frozen else None)

    def after_step(self, progress: Progress) -> None:
        """All follow; only weakly augmented images enter the student's memory."""
        teacher.ema_update(self.teacher, self.student, progress.values["teacher_momentum"])
        self.centre.update()
        seen = Seen(*(torch.cat(parts) for parts in zip(*self._seen, strict=True)))  # one large batch
        for view in range(LARGE_CROPS):
            self.instance_queue.push(seen.instance[:, view])
            self.local_group_queue.push(seen.local_group[:, view])
        self.student_memory.push(seen.own, seen.weak)
        self.teacher_memory.push(seen.target)
        self._seen.clear()
