"""BYOL against vectors made with yaox12/BYOL-PyTorch, at the tolerances of its fact sheet."""

import numpy as np
import pytest
import torch
from torch import nn

from trainers import optim, teacher
from trainers.heads import mlp
from trainers.method import Plan
from trainers.methods.byol import BYOL, BYOLRecipe, byol_loss
from trainers.networks import Projected

LOSS = {"rtol": 1e-5, "atol": 0.0}
GRADIENT = {"rtol": 1e-4, "atol": 1e-7}
LAYERS = {"0": "l1", "1": "bn1", "3": "l2"}  # our numbers, the authors' names


@pytest.fixture(scope="module")
def g(golden):
    return golden("byol")


def test_loss_and_gradient_equal_official(g):
    predictions = g["preds"].clone().requires_grad_()
    targets = g["targets"].clone().requires_grad_()
    loss = byol_loss(predictions, targets)
    loss.backward()
    torch.testing.assert_close(loss.detach(), g["loss"], **LOSS)
    torch.testing.assert_close(predictions.grad, g["grad_preds"], **GRADIENT)
    assert targets.grad is None


def test_schedules_equal_official(g):
    recipe = BYOLRecipe(
        backbone="resnet_mini",
        lr=g["sched.base_lr"],
        warmup_epochs=g["sched.warmup_epochs"],
        teacher_momentum=g["sched.base_momentum"],
    )
    batch, images = g["sched.global_batch_size"], g["sched.num_examples"]
    plan = Plan(g["sched.total_epochs"], images // batch, batch, images)
    schedules = BYOL(recipe).schedules(plan)
    np.testing.assert_allclose(schedules["lr"], g["sched.lr_per_step"].numpy(), rtol=1e-9)
    np.testing.assert_allclose(schedules["teacher_momentum"], g["sched.tau_per_step"].numpy(), rtol=1e-9)


def test_steps_are_counted_from_images_not_from_batches():
    plan = Plan(epochs=4, steps_per_epoch=10, batch_size=64, images=700)
    method = BYOL(BYOLRecipe.tiny())
    momentum = method.schedules(plan)["teacher_momentum"]
    assert len(momentum) == 40
    assert momentum[-1] < optim.linspace_cosine(0.98, 1.0, 40)[-1]  # the authors count 43 steps


def test_optimiser_steps_equal_official(g, layerwise_steps):
    recipe = BYOLRecipe(sgd_momentum=g["lars.momentum"])
    layerwise_steps(
        g, "lars", recipe, {"lr": g["lars.lr"], "weight_decay": g["lars.weight_decay"]}, {"lr": g["lars.lr"]}
    )


class Convolution(nn.Module):
    """The vectors' tiny encoder, by the part of timm's interface that is used."""

    def __init__(self, weight):
        super().__init__()
        self.conv = nn.Conv2d(3, len(weight), 3, stride=2, bias=False)

    def forward_features(self, images):
        return self.conv(images)


def test_a_whole_step_equals_official(g):
    weight = g["model.before.online_network.encoder.0.weight"]
    widths = (len(weight), *g["model.before.online_network.projetion.l2.weight"].shape[::-1])
    method = BYOL(BYOLRecipe.tiny())
    method.student = Projected(Convolution(weight), mlp(widths))
    method.predictor = mlp((widths[2], widths[1], widths[2]))
    method.teacher = teacher.frozen_copy(method.student)

    def official(module, prefix):
        state = {}
        for name in module.state_dict():
            first, _, rest = name.partition(".")
            if first == "backbone":
                key = f"{prefix}encoder.0.weight"
            elif first == "projector":
                number, _, field = rest.partition(".")
                key = f"{prefix}projetion.{LAYERS[number]}.{field}"
            else:
                key = f"{prefix}{LAYERS[first]}.{rest}"
            state[name] = key
        return state

    names = {
        "student": official(method.student, "online_network."),
        "teacher": official(method.teacher, "target_network."),
        "predictor": official(method.predictor, "predictor.predictor."),
    }
    for module, keys in names.items():
        state = {
            name: g[f"model.before.{key}"] if f"model.before.{key}" in g else torch.tensor(0)
            for name, key in keys.items()
        }
        getattr(method, module).load_state_dict(state)

    teacher.ema_update(method.teacher, method.student, g["model.tau"])
    projections, _ = method.student(torch.cat([g["model.view1"], g["model.view2"]]))
    predictions = method.predictor(projections)
    with torch.no_grad():
        targets, _ = method.teacher(torch.cat([g["model.view2"], g["model.view1"]]))
    loss = byol_loss(predictions, targets)
    loss.backward()
    torch.testing.assert_close(predictions.detach(), g["model.q"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(targets, g["model.target_z"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.detach(), g["model.loss"], **LOSS)
    for name, value in method.teacher.state_dict().items():
        expected = g.get(f"model.after.{names['teacher'][name]}")
        if expected is not None:
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    for module in ("student", "predictor"):
        for name, parameter in getattr(method, module).named_parameters():
            expected = g[f"model.grad.{names[module][name]}"]
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-6)


def test_only_the_stem_norm_of_the_one_dimensional_parameters_is_adapted(g):
    weights, exempt = BYOL(BYOLRecipe(hidden=8, projection=4)).parameter_groups()
    assert [name for name, p in weights.parameters if p.ndim == 1] == ["backbone.bn1.weight"]
    assert len(exempt.parameters) == g["exclude.num_excluded"]
    assert len(exempt.parameters) + len(weights.parameters) == g["exclude.num_params"]
