"""BYOL against vectors made with yaox12/BYOL-PyTorch, at the tolerances of its fact sheet."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from dse_monitor.trainers.blocks import optim, teacher
from dse_monitor.trainers.blocks.heads import mlp
from dse_monitor.trainers.blocks.networks import Projected
from dse_monitor.trainers.method import ParameterGroup, Plan, Progress, Views
from dse_monitor.trainers.methods.byol import BYOL, BYOLRecipe, byol_loss

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
    schedules, steps = BYOL(recipe).schedules(plan), plan.total_steps  # theirs may hold a few that never come
    np.testing.assert_allclose(schedules["lr"], g["sched.lr_per_step"][:steps].numpy(), rtol=1e-9)
    np.testing.assert_allclose(
        schedules["teacher_momentum"], g["sched.tau_per_step"][:steps].numpy(), rtol=1e-9
    )


def test_steps_are_counted_from_images_not_from_batches():
    plan = Plan(epochs=4, steps_per_epoch=10, batch_size=64, images=700)
    method = BYOL(BYOLRecipe.tiny())
    momentum = method.schedules(plan)["teacher_momentum"]
    assert len(momentum) == 40
    assert momentum[-1] < optim.linspace_cosine(0.98, 1.0, 40)[-1]  # the authors count 43 steps


def test_optimiser_steps_equal_official(g, layerwise_steps):
    recipe = BYOLRecipe(sgd_momentum=g["lars.momentum"])
    common = {"lr": g["lars.lr"], "eta": g["lars.eta"]}
    layerwise_steps(g, "lars", recipe, {**common, "weight_decay": g["lars.weight_decay"]}, common)


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

    seen = {}
    for name in ("predictor", "teacher"):
        getattr(method, name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: output})
        )
    progress = Progress(Plan(1, 1, 4, 4), 0, {"teacher_momentum": g["model.tau"]})
    method.before_step(progress)
    loss = method(Views([g["model.view1"], g["model.view2"]]), progress).loss
    loss.backward()
    torch.testing.assert_close(seen["predictor"].detach(), g["model.q"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen["teacher"][0], g["model.target_z"], rtol=1e-4, atol=1e-5)
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


def test_the_measured_network_is_the_target():
    assert BYOL.evaluated == "teacher.backbone."


def test_loss_is_a_mean_over_both_directions():
    x, y = torch.randn(2, 6, 5)
    assert byol_loss(x, 2 * x).item() == pytest.approx(0, abs=1e-6)
    assert byol_loss(x, -x).item() == pytest.approx(4, rel=1e-6)
    torch.testing.assert_close(byol_loss(torch.cat([x, x]), torch.cat([y, y])), byol_loss(x, y))


@pytest.mark.parametrize("warmup", [0, 2])
def test_cosine_is_as_long_as_the_run_so_the_learning_rate_stops_short_of_its_floor(warmup):
    recipe = dataclasses.replace(BYOLRecipe.tiny(), warmup_epochs=warmup)
    plan = Plan(epochs=8, steps_per_epoch=5, batch_size=256, images=5 * 256)
    lr, peak = BYOL(recipe).schedules(plan)["lr"], recipe.lr
    assert lr[0] == pytest.approx(peak if warmup == 0 else 1e-3 * peak)
    assert lr[5 * warmup] == pytest.approx(peak)
    last = 39 - 5 * warmup
    expected = 1e-3 * peak + 0.5 * (peak - 1e-3 * peak) * (1 + np.cos(np.pi * last / 40))
    assert lr[-1] == pytest.approx(expected)


def test_rate_inside_the_momentum_buffer_outlives_a_change_of_the_rate():
    """Lowering the rate to nothing leaves the past steps in the buffer; outside it, all would stop."""
    moved = {}
    for name in ("lars_inner", "lars"):
        weight = nn.Parameter(torch.ones(2, 2))
        recipe = dataclasses.replace(BYOLRecipe.tiny(), optimizer=name)
        optimizer = optim.build(recipe, [ParameterGroup("all", [("w", weight)])])
        for rate in (1.0, 0.0):
            before = weight.detach().clone()
            weight.grad = torch.ones_like(weight)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
        moved[name] = not torch.equal(weight.detach(), before)
    assert moved == {"lars_inner": True, "lars": False}


def test_target_moves_before_it_is_read_and_not_after_the_step():
    method = BYOL(BYOLRecipe.tiny())
    progress = Progress(Plan(1, 1, 4, 4), 0, {"teacher_momentum": 0.75})
    weight, target = method.student.projector[0].weight, method.teacher.projector[0].weight
    before = target.detach().clone()
    weight.data.add_(1)
    method.before_step(progress)
    torch.testing.assert_close(target.detach(), before + 0.25)
    method.after_step(progress)
    torch.testing.assert_close(target.detach(), before + 0.25)


def test_both_views_share_one_pass():
    """Batch statistics are over the two views together."""
    method = BYOL(BYOLRecipe.tiny())
    with torch.no_grad():
        method(Views([torch.randn(4, 3, 64, 64) for _ in range(2)]), Progress(Plan(1, 1, 4, 4)))
    for norm in (method.student.backbone.bn1, method.predictor[1], method.teacher.projector[1]):
        assert norm.num_batches_tracked == 1


def test_residual_norms_start_at_one():
    weight = BYOL(BYOLRecipe.tiny()).student.backbone.layer1[0].bn2.weight
    assert torch.equal(weight, torch.ones_like(weight))


def test_heads_have_biases_and_no_norm_at_the_end(g):
    method = BYOL(BYOLRecipe.tiny())
    for prefix, head in (
        ("online_network.projetion", method.student.projector),
        ("predictor.predictor", method.predictor),
    ):
        ours = {
            name.replace(name.split(".")[0], LAYERS[name.split(".")[0]], 1)
            for name, _ in head.named_parameters()
        }
        theirs = {k.removeprefix(f"model.grad.{prefix}.") for k in g if k.startswith(f"model.grad.{prefix}.")}
        assert ours == theirs


def test_views_are_bilinear_flipped_first_and_blurred_by_a_kernel():
    one, two = BYOL(BYOLRecipe.tiny()).views().crops
    for crop in (one, two):
        assert (crop.interpolation, crop.flip_last, crop.scale) == ("bilinear", False, (0.08, 1.0))
        assert (crop.jitter, crop.blur_kernel) == ((0.4, 0.4, 0.2, 0.1), 23)
    assert ((one.blur, one.solarise), (two.blur, two.solarise)) == ((1.0, 0.0), (0.1, 0.2))
