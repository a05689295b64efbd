"""MEC: maximise the coding length of a batch, aligning the views on the way.

Liu, Wang, Li and Wang, "Self-Supervised Learning via Maximum Entropy Coding", NeurIPS 2022, arXiv 2210.11464.
Reference: xinliu20/MEC @ 35045dc, main_pretrain.py, mec/builder.py, mec/loader.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim, teacher, views
from dse_monitor.trainers.blocks.heads import mlp
from dse_monitor.trainers.blocks.networks import Projected
from dse_monitor.trainers.distributed import gather_with_gradient
from dse_monitor.trainers.method import Method, ParameterGroup, Plan, Progress, Recipe, StepOutput, Views

TAYLOR_ORDER = 4  # terms of the log-determinant's series; loss_func's default in the released code


@dataclass(frozen=True, kw_only=True)
class MECRecipe(Recipe):
    """MEC's numbers: the defaults of main_pretrain.py, ResNet-50.

    Attributes:
        projection: width d of projector and predictor output.
        predictor_hidden: the predictor's bottleneck.
        distortion: eps, already squared: how coarse the code is.
        lambda_start: factor on 1 / lambda at the start of its warmup.
        lambda_epochs: length of that warmup.
        teacher_momentum: of the teacher's EMA at the start; a cosine takes it to 1.
    """

    backbone: str = "resnet50"  # --arch
    batch_size: int = 1024  # --batch-size
    epochs: int = 100  # --epochs
    warmup_epochs: int = 10  # --warmup-epochs
    lr: float = 0.5  # --lr, per 256 images
    weight_decay: float = 1e-5  # --wd, on every parameter
    optimizer: str = "sgd"
    projection: int = 2048  # --dim
    predictor_hidden: int = 512  # --pred-dim
    distortion: float = 64.0  # --eps
    lambda_start: float = 8.0  # lamda_scheduler
    lambda_epochs: int = 10  # lamda_scheduler
    teacher_momentum: float = 0.996  # --teacher-momentum

    @classmethod
    def tiny(cls) -> MECRecipe:
        """A four-block ResNet on 64-px scenes."""
        return dataclasses.replace(
            cls(),
            backbone="resnet_mini",
            image_size=64,
            batch_size=64,
            epochs=10,
            warmup_epochs=1,
            projection=256,
            predictor_hidden=64,
            lambda_epochs=1,
            teacher_momentum=0.98,  # a tenth of the steps needs a faster teacher
        )


def inverse_lambda(batch_size: int, width: int, distortion: float) -> float:
    """1 / lambda = m * eps / d for m images, width d and squared distortion eps (equation 2)."""
    return batch_size * distortion / width


def coding_trace(p: Tensor, z: Tensor, lambda_inverse: float, order: int = TAYLOR_ORDER) -> Tensor:
    """Trace of the Taylor series of log(I + C), C = p z^T / lambda_inverse on unit rows (equation 5).

    Args:
        p: teacher side [m, d].
        z: student side [m, d].
        lambda_inverse: what C is divided by; large enough keeps the series convergent.
        order: number of terms.
    """
    c = F.normalize(p.float(), dim=1) @ F.normalize(z.float(), dim=1).T / lambda_inverse
    power, total = c, c.diagonal().sum()
    for k in range(2, order + 1):
        power = power @ c  # a matrix power: C is not symmetric
        total = total + (-1) ** (k + 1) / k * power.diagonal().sum()
    return total


def mec_loss(
    p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor, lambda_inverse: float, order: int = TAYLOR_ORDER
) -> Tensor:
    """-lambda_inverse * (T(p1, z2) + T(p2, z1)) / (2m) over the batch of all processes.

    Args:
        p1: teacher's projections of view 1, [m, d]; no gradient.
        p2: teacher's projections of view 2, [m, d]; no gradient.
        z1: student's predictions of view 1, [m, d].
        z2: student's predictions of view 2, [m, d].
        lambda_inverse: its value at this step.
        order: terms of the series.
    """
    p1, p2 = p1.detach(), p2.detach()
    traces = coding_trace(p1, z2, lambda_inverse, order) + coding_trace(p2, z1, lambda_inverse, order)
    return -lambda_inverse * traces / (2 * len(z1))


def coding_length(loss: Tensor, lambda_inverse: float, batch_size: int, width: int) -> Tensor:
    """Per-sample coding length (m + d) / 2 * (T(p1, z2) + T(p2, z1)) / (2m), read off the loss; for logs."""
    return -loss / lambda_inverse * (batch_size + width) / 2


class MEC(Method):
    """Maximum entropy coding."""

    recipe_type = MECRecipe
    teachers = ("teacher",)
    batch_coupled = "batch norm, and a coding length over the batch"
    differences = (
        "The projector is a module beside the network instead of in place of its last layer: the same "
        "numbers under other names. The authors train in float32 (`--precision float32`). Nothing else is "
        "known to differ."
    )

    def __init__(self, recipe: MECRecipe) -> None:
        super().__init__(recipe)
        self.recipe = recipe
        spec = self.backbone_spec = backbones.describe(recipe.backbone, recipe.image_size)
        widths = (spec.width, spec.width, spec.width, recipe.projection)
        projector = mlp(widths, bias=False, last_norm="plain")
        projector[6].bias.requires_grad_(False)  # pyright: ignore[reportCallIssue]
        self.student = Projected(backbones.build(spec), projector)
        self.predictor = mlp((recipe.projection, recipe.predictor_hidden, recipe.projection), bias=False)
        self.teacher = teacher.frozen_copy(self.student)

    def views(self) -> views.MultiCrop:
        """MoCo v3's asymmetric pair on larger crops."""
        pair = views.byol_pair(
            self.recipe.image_size, scale=(0.2, 1.0), interpolation="bilinear", flip_last=True
        )
        return views.MultiCrop(pair)

    def forward(self, views: Views, progress: Progress) -> StepOutput:
        """One pass per view and network. Dense: the student's tokens, both views, [2B, N, D]."""
        (y1, dense1), (y2, dense2) = (self.student(images) for images in views.images)
        z1, z2 = self.predictor(y1), self.predictor(y2)
        with torch.no_grad():
            p1, p2 = (self.teacher(images)[0] for images in views.images)
        with torch.autocast(z1.device.type, enabled=False):
            p1, p2, z1, z2 = (gather_with_gradient(x.float()) for x in (p1, p2, z1, z2))
            lambda_inverse = progress.values["inverse_lambda"]
            loss = mec_loss(p1, p2, z1, z2, lambda_inverse)
            length = coding_length(loss.detach(), lambda_inverse, *z1.shape)
        return StepOutput(loss, torch.cat([dense1, dense2]), {"coding_length": length})

    def schedules(self, plan: Plan) -> dict[str, np.ndarray]:
        """Per step; lambda has a warmup of its own."""
        r, steps = self.recipe, plan.total_steps
        peak = r.lr * plan.batch_size / 256
        seen = plan.batch_size // plan.accumulate  # the images that C is made of
        target = inverse_lambda(seen, r.projection, r.distortion)
        rising = r.lambda_epochs * plan.steps_per_epoch
        lambdas = np.concatenate(
            [np.linspace(r.lambda_start * target, target, rising), np.full(steps, target)]
        )
        return {
            "lr": optim.linspace_cosine(
                peak, 0.0, steps, warmup_steps=r.warmup_epochs * plan.steps_per_epoch
            ),
            "weight_decay": optim.constant(r.weight_decay, steps),
            "teacher_momentum": optim.linspace_cosine(r.teacher_momentum, 1.0, steps),
            "inverse_lambda": lambdas[:steps],
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """One group; everything is decayed, batch norms and biases too."""
        named = [*self.student.named_parameters(), *self.predictor.named_parameters()]
        return [ParameterGroup("all", [(name, p) for name, p in named if p.requires_grad])]

    def after_step(self, progress: Progress) -> None:
        """The teacher follows the updated student."""
        teacher.ema_update(self.teacher, self.student, progress.values["teacher_momentum"])
