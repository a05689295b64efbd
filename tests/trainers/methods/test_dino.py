"""DINO against vectors made with facebookresearch/dino, at the tolerances of its fact sheet."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainers import backbones, optim, teacher
from trainers.heads import DINOHead
from trainers.method import Plan
from trainers.methods.dino import DINO, DINORecipe, loss_and_centre

LOSS = {"rtol": 1e-5, "atol": 0.0}
GRADIENT = {"rtol": 1e-4, "atol": 1e-6}
CENTRE = {"rtol": 0.0, "atol": 1e-6}


@pytest.fixture(scope="module")
def g(golden):
    return golden("dino")


def run_step(g, prefix, centre, crops):
    epochs = g["nepochs"]
    table = optim.epoch_table(
        g["warmup_teacher_temp"], g["teacher_temp"], g["warmup_teacher_temp_epochs"], epochs, 1
    )
    student = g[f"{prefix}/student_out"].clone().requires_grad_()
    loss, centre = loss_and_centre(
        student,
        g[f"{prefix}/teacher_out"],
        centre,
        crops=crops,
        student_temperature=g["student_temp"],
        teacher_temperature=float(table[g[f"{prefix}/epoch"]]),
        centre_momentum=g["center_momentum"],
    )
    loss.backward()
    return loss.detach(), student.grad, centre


def test_loss_gradient_and_centre_equal_two_official_steps(g):
    centre = g["center_before"]
    for prefix in ("step1", "step2"):
        loss, gradient, centre = run_step(g, prefix, centre, g["ncrops"])
        torch.testing.assert_close(loss, g[f"{prefix}/loss"], **LOSS)
        torch.testing.assert_close(gradient, g[f"{prefix}/grad_student"], **GRADIENT)
        torch.testing.assert_close(centre, g[f"{prefix}/center_after"], **CENTRE)


def test_loss_without_local_crops_equals_official(g):
    loss, gradient, centre = run_step(g, "nomc", torch.zeros(1, g["out_dim"]), 2)
    torch.testing.assert_close(loss, g["nomc/loss"], **LOSS)
    torch.testing.assert_close(gradient, g["nomc/grad_student"], **GRADIENT)
    torch.testing.assert_close(centre, g["nomc/center_after"], **CENTRE)


def test_temperature_table_equals_official(g):
    table = optim.epoch_table(
        g["warmup_teacher_temp"], g["teacher_temp"], g["warmup_teacher_temp_epochs"], g["nepochs"], 1
    )
    np.testing.assert_allclose(table, g["teacher_temp_schedule"].numpy(), atol=1e-12, rtol=0)
    assert table[g["epoch"]] == pytest.approx(g["teacher_temp_at_epoch"], abs=1e-12)


def test_head_and_its_gradients_equal_official(g):
    head = DINOHead(12, 16, hidden=20, bottleneck=8, norm_last_layer=False)
    head.load_state_dict({k[len("head/param/") :]: v for k, v in g.items() if k.startswith("head/param/")})
    x = g["head/in"].clone().requires_grad_()
    out = head(x)
    torch.testing.assert_close(out, g["head/out"], rtol=1e-5, atol=1e-6)
    (out * g["head/cotangent"]).sum().backward()
    torch.testing.assert_close(x.grad, g["head/grad_in"], **GRADIENT)
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(parameter.grad, g[f"head/grad/{name}"], **GRADIENT)


def test_clipping_is_per_tensor(g):
    gradients = [g[f"clip/grad_in_{i}"].clone() for i in range(3)]
    norms = optim.clip_each(gradients, g["clip/max_norm"])
    torch.testing.assert_close(norms.double(), g["clip/norms"], rtol=1e-5, atol=0)
    for i, gradient in enumerate(gradients):
        torch.testing.assert_close(gradient, g[f"clip/grad_out_{i}"], **GRADIENT)


def test_teacher_update_equals_official(g):
    student, averaged = torch.nn.Module(), torch.nn.Module()
    student.w = torch.nn.Parameter(g["ema/student"].clone())
    averaged.w = torch.nn.Parameter(g["ema/teacher_before"].clone())
    teacher.ema_update(averaged, student, g["ema/m"])
    torch.testing.assert_close(averaged.w.data, g["ema/teacher_after"], rtol=1e-6, atol=1e-7)


def test_schedules_equal_official(g, distillation_schedules):
    distillation_schedules(g, DINO)


def test_position_interpolation_equals_official(g):
    positions = g["posint/pos_embed"]
    out = backbones.interpolate_positions(positions, 96, 96, 16)
    torch.testing.assert_close(out, g["posint/out_96"], rtol=1e-5, atol=1e-6)
    height, width = g["posint/hw"].tolist()
    out = backbones.interpolate_positions(positions, height, width, 16)
    torch.testing.assert_close(out, g["posint/out_hw"], rtol=1e-5, atol=1e-6)
    assert backbones.interpolate_positions(positions, 224, 224, 16) is positions


def test_parameter_groups_equal_official(g):
    recipe = DINORecipe(prototypes=16, head_hidden=8, head_bottleneck=4)
    method = DINO(recipe)
    decayed, plain = method.parameter_groups()
    in_depth_1 = [n for n, _ in decayed.parameters if "blocks." not in n or "blocks.0." in n]
    assert set(in_depth_1) == set(g["groups/regularized"].split("\n"))
    in_depth_1 = [n for n, _ in plain.parameters if "blocks." not in n or "blocks.0." in n]
    assert set(in_depth_1) == set(g["groups/not_regularized"].split("\n"))
    assert (decayed.weight_decay, plain.weight_decay) == ("weight_decay", "")


def test_first_epoch_leaves_prototypes_out_of_the_step():
    method = DINO(DINORecipe.tiny())
    for parameter in method.student.parameters():
        parameter.grad = torch.ones_like(parameter)
    plan = Plan(10, 5, 64, 320)
    from trainers.method import Progress

    method.after_backward(Progress(plan, 4))
    assert method.student.head.last_layer.weight_v.grad is None
    assert method.student.head.mlp[0].weight.grad.norm().item() == pytest.approx(3.0, rel=1e-5)
    method.student.head.last_layer.weight_v.grad = torch.ones_like(method.student.head.last_layer.weight_v)
    method.after_backward(Progress(plan, 5))
    assert method.student.head.last_layer.weight_v.grad.norm().item() == pytest.approx(3.0, rel=1e-5)
