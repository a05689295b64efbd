"""The contract between a method and the engine: Recipe, Method, StepOutput, and the meaning of every hook.

A method says what is seen (views), what is computed (forward), which numbers change over time (schedules) and
what happens around an optimiser step. The engine owns everything else: devices, precision, DDP, accumulation,
the optimiser step, the DSE term, logging, saving and resuming. Order of one optimiser step, as the engine
runs it::

    method.before_step(progress)            # e.g. an EMA that must precede the forward, prototype scaling
    for each micro-batch:
        out = method(views, progress)       # DDP wraps this call; loss / micro-batches is back-propagated
    method.after_backward(progress)         # e.g. clipping per tensor, freezing by ``grad = None``
    optimizer.step()                        # lr and weight decay of every group set from the schedules
    method.after_step(progress)             # e.g. the teacher's EMA, centres

Shape letters used in this package: B images in a micro-batch on one process, V views, N tokens, D feature
width, K prototypes, C embedding width, Q queue length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import default_collate

from dse_monitor.trainers.backbones import Backbone

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every number of a training run that a method's authors chose; a method subclasses it with its defaults.

    Each field becomes a command-line flag, so each has one plain type; the subclass notes where each number
    comes from.

    Attributes:
        backbone: a timm model name, or one of the small ones in :data:`dse_monitor.trainers.backbones.SMALL`.
        image_size: side of the (large) crops, pixels.
        batch_size: images per optimiser step, over all processes and micro-batches together.
        epochs: passes over the data.
        warmup_epochs: length of the learning-rate warmup.
        lr: learning rate as the authors write it; ``schedules`` turns it into the one used (often times batch
            / 256).
        weight_decay: weight decay, or its start where the method moves it.
        optimizer: ``adamw``, ``sgd``, ``lars`` (Barlow Twins, VICReg), ``lars_inner`` (BYOL), ``larc``
            (SwAV).
        betas: AdamW's decay rates.
        sgd_momentum: momentum of the SGD family.
        presets: names of the classmethods that ``--preset`` offers beside ``official``, the defaults; each
            returns a whole recipe.
    """

    presets: ClassVar[tuple[str, ...]] = ("tiny",)

    backbone: str
    image_size: int = 224
    batch_size: int
    epochs: int
    warmup_epochs: int = 10
    lr: float
    weight_decay: float
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    sgd_momentum: float = 0.9

    @classmethod
    def tiny(cls) -> Recipe:
        """The method's preset for 64-px scenes: about a minute on two CPU cores."""
        raise NotImplementedError(
            f"{cls.__name__} needs a tiny preset: a classmethod returning a {cls.__name__}"
        )


class Views(NamedTuple):
    """What the network sees of one image, or of a batch after collation.

    Attributes:
        images: one tensor per crop, in the order the loss relies on. One image: uint8 [3, h, w], or float in
            [0, 1]. In ``forward``: float [B, 3, h, w], normalised with the method's mean and std, on the
            device.
        extra: anything else by name (masks, crop locations, flags); collated and moved, never changed.
    """

    images: list[Tensor]
    extra: dict[str, Tensor] = {}  # noqa: RUF012  a NamedTuple default, never mutated


@dataclass(frozen=True)
class Plan:
    """How long a run is and how it is spread out; known before the first step.

    Attributes:
        epochs: passes over the data.
        steps_per_epoch: optimiser steps per epoch (incomplete batches are dropped).
        batch_size: images per optimiser step over all processes.
        images: images in the data set.
        world_size: processes.
        rank: this process.
        accumulate: micro-batches per optimiser step; a loss sees one of them, from all processes.
    """

    epochs: int
    steps_per_epoch: int
    batch_size: int
    images: int
    world_size: int = 1
    rank: int = 0
    accumulate: int = 1

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class Progress:
    """Where the run is: the same object goes to every hook of one optimiser step.

    Attributes:
        plan: the run.
        step: optimiser steps done before this one, 0 .. total_steps - 1.
        values: every schedule's value at this step, by its name in ``Method.schedules``.
    """

    plan: Plan
    step: int = 0
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """Index of the running epoch, from 0."""
        return self.step // self.plan.steps_per_epoch

    @property
    def fraction(self) -> float:
        """Epochs done before this step, with its fraction."""
        return self.step / self.plan.steps_per_epoch


@dataclass(frozen=True)
class StepOutput:
    """What one forward returns.

    Attributes:
        loss: scalar with gradient; the mean over the micro-batch.
        dense: student tokens [B', N, D] with gradient (no cls token), as the method's fact sheet names them;
            B' may be several crops' images, crop-major. None only where the method has none.
        logs: detached scalars to log beside the loss (its parts, entropies).
    """

    loss: Tensor
    dense: Tensor | None = None
    logs: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that the optimiser treats alike.

    Attributes:
        name: what it is called in logs and errors.
        parameters: (name, parameter) pairs.
        lr: name of the schedule that gives its learning rate.
        lr_scale: factor on that value.
        weight_decay: name of the schedule that gives its weight decay; empty for none.
        adapt: whether LARS applies its trust ratio here.
    """

    name: str
    parameters: Sequence[tuple[str, nn.Parameter]]
    lr: str = "lr"
    lr_scale: float = 1.0
    weight_decay: str = "weight_decay"
    adapt: bool = True


def collate(samples: Sequence[Views], step: int) -> Views:
    """Stack a micro-batch: every image and extra of the same name gains a leading batch axis."""
    del step
    return default_collate(list(samples))


class Method(nn.Module):
    """One self-supervised method. Subclasses build their networks in ``__init__(recipe)`` and override hooks.

    ``__init__`` must set ``self.backbone_spec`` (what :func:`backbones.describe` returned), so that
    a checkpoint says how to rebuild the encoder. All state that a resumed run needs lives in parameters and
    persistent buffers.

    Attributes:
        recipe_type: the Recipe subclass.
        evaluated: prefix in the state dict of the encoder that DSE is measured on; what follows is named as
            in timm.
        teachers: names of submodules that no gradient may reach.
        mean, std: normalisation of images in [0, 1].
        batch_coupled: why micro-batches do not add up to the large batch (negatives, batch statistics); empty
            if they do.
        sync_batchnorm: whether batch norms share statistics over processes.
        rank_buffers: names of buffers that differ between processes and are saved for each.
        differences: where the method departs from the authors' code, and why, in full sentences; goes to
            docs/methods.md, which also reads the module's docstring and the ``Dense:`` of ``forward``'s.
    """

    recipe_type: ClassVar[type[Recipe]]
    evaluated: ClassVar[str] = "student.backbone."
    teachers: ClassVar[tuple[str, ...]] = ()
    mean: ClassVar[tuple[float, float, float]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, float, float]] = IMAGENET_STD
    batch_coupled: str = ""
    sync_batchnorm: ClassVar[bool] = True
    rank_buffers: ClassVar[tuple[str, ...]] = ()
    differences: ClassVar[str]

    backbone_spec: Backbone

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe: Any = recipe

    # What is seen -------------------------------------------------------------------------------------------

    def views(self) -> Callable[[Image.Image], Views]:
        """The random transform of one RGB image; picklable, and drawing only from the global generators.

        The engine seeds torch's, Python's and numpy's global generators for each image from (seed, epoch,
        index), so a view never depends on the number of workers or on where a run was interrupted.
        """
        raise NotImplementedError

    def collator(self) -> Callable[[Sequence[Views], int], Views]:
        """The function that joins samples; picklable. Masks drawn per batch (I-JEPA) are made here.

        It is called with the samples and the number of the micro-batch since the run's start, the same on
        every process; the global generators are seeded from (seed, that number, process) around the call.
        """
        return collate

    # What is computed ---------------------------------------------------------------------------------------

    def forward(self, views: Views, progress: Progress) -> StepOutput:
        """Loss of one micro-batch, under the engine's autocast; objectives go to float32 by themselves."""
        raise NotImplementedError

    # What changes over time ---------------------------------------------------------------------------------

    def schedules(self, plan: Plan) -> dict[str, np.ndarray]:
        """Float64 arrays [total_steps] by name. ``lr`` and ``weight_decay`` drive the optimiser."""
        raise NotImplementedError

    def parameter_groups(self) -> list[ParameterGroup]:
        """How the optimiser sees the trainable parameters; by default one group, everything decayed."""
        return [ParameterGroup("all", [(n, p) for n, p in self.named_parameters() if p.requires_grad])]

    # What happens around a step -----------------------------------------------------------------------------

    def before_step(self, progress: Progress) -> None:
        """Once per optimiser step, before its first forward: EMAs that use the weights of the step before."""

    def after_backward(self, progress: Progress) -> None:
        """Once per optimiser step, gradients complete and unscaled: clip; ``grad = None`` freezes."""

    def after_step(self, progress: Progress) -> None:
        """Once per optimiser step, after it: the teacher's EMA, centres."""


def normalise(views: Views, mean: Sequence[float], std: Sequence[float]) -> Views:
    """Images as the networks want them: uint8 to [0, 1], then (x - mean) / std per channel."""

    def one(image: Tensor) -> Tensor:
        # not made on a GPU: that would wait for all that is queued there
        shift, scale = (
            torch.tensor(v).view(3, 1, 1).to(image.device, non_blocking=True) for v in (mean, std)
        )
        if image.dtype == torch.uint8:
            return image.float().div_(255).sub_(shift).div_(scale)
        return image.sub(shift.to(image.dtype)).div_(scale.to(image.dtype))  # one new tensor, not two

    return Views([one(image) for image in views.images], views.extra)
