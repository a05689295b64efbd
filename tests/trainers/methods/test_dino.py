"""DINO against vectors made with facebookresearch/dino, at the tolerances of its fact sheet."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from timm.layers import DropPath
from torch import nn

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim, teacher
from dse_monitor.trainers.blocks.heads import DINOHead
from dse_monitor.trainers.method import Plan, Progress, Views
from dse_monitor.trainers.methods.dino import DINO, DINORecipe, dino_loss, loss_and_centre

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
    hidden, width = g["head/param/mlp.0.weight"].shape
    prototypes, bottleneck = g["head/param/last_layer.weight_v"].shape
    head = DINOHead(width, prototypes, hidden=hidden, bottleneck=bottleneck, norm_last_layer=False)
    head.load_state_dict({k[len("head/param/") :]: v for k, v in g.items() if k.startswith("head/param/")})
    x = g["head/in"].clone().requires_grad_()
    out = head(x)
    torch.testing.assert_close(out, g["head/out"], rtol=1e-5, atol=1e-6)
    (out * g["head/cotangent"]).sum().backward()
    torch.testing.assert_close(x.grad, g["head/grad_in"], **GRADIENT)
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(parameter.grad, g[f"head/grad/{name}"], **GRADIENT)


def test_clipping_is_per_tensor(g):
    count = sum(key.startswith("clip/grad_in_") for key in g)
    gradients = [g[f"clip/grad_in_{i}"].clone() for i in range(count)]
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
    recipe = DINORecipe(
        prototypes=16, head_hidden=8, head_bottleneck=4, norm_last_layer=g["groups/norm_last_layer"]
    )
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
    method.after_backward(Progress(plan, 4))
    assert method.student.head.last_layer.weight_v.grad is None
    assert method.student.head.mlp[0].weight.grad.norm().item() == pytest.approx(3.0, rel=1e-5)
    method.student.head.last_layer.weight_v.grad = torch.ones_like(method.student.head.last_layer.weight_v)
    method.after_backward(Progress(plan, 5))
    assert method.student.head.last_layer.weight_v.grad.norm().item() == pytest.approx(3.0, rel=1e-5)


VALUES = {"teacher_temperature": 0.04, "teacher_momentum": 0.75}
STEP = Progress(Plan(10, 5, 4, 20), 0, VALUES)


@pytest.fixture
def method():
    torch.manual_seed(0)
    return DINO(DINORecipe.tiny())


def crops(*sizes, batch=3):
    return Views([torch.randn(batch, 3, size, size) for size in sizes])


@pytest.mark.parametrize("views", [2, 3, 10])
def test_loss_is_divided_by_the_pairs(views):
    """Without an opinion every pair costs log K, however many there are."""
    targets = torch.softmax(torch.randn(2, 5, 7), -1)
    assert dino_loss(torch.zeros(views, 5, 7), targets, 0.1).item() == pytest.approx(np.log(7), rel=1e-5)


def test_position_interpolation_is_not_timms(g):
    """timm aims at a size, the authors at a scale of (size + 0.1) / side: other numbers."""
    from timm.layers import resample_abs_pos_embed

    ours = backbones.interpolate_positions(g["posint/pos_embed"], 96, 96, 16)
    for antialias in (True, False):
        timms = resample_abs_pos_embed(g["posint/pos_embed"], [6, 6], antialias=antialias)
        assert (ours - timms).abs().max() > 0.1


def test_loss_uses_the_old_centre_and_the_step_moves_it_by_the_mean_of_all_global_rows(method):
    views = crops(64, 64, 32)
    with torch.no_grad():
        logits, _ = method.teacher(views.images[:2])
        before = method(views, STEP).loss
    assert not method.centre.value.any()
    method.after_step(STEP)
    torch.testing.assert_close(method.centre.value, 0.1 * logits.mean(0, keepdim=True))
    assert "centre.value" in method.state_dict()
    with torch.no_grad():
        assert method(views, STEP).loss != before


def test_teacher_sees_global_crops_only_and_student_all(method):
    seen = {"student": [], "teacher": []}
    for name, found in seen.items():
        getattr(method, name).register_forward_hook(
            lambda module, args, output, found=found: found.extend(len(image) for image in args[0])
        )
    method(crops(64, 64, 32, 32, 32), STEP)
    assert seen == {"student": [3] * 5, "teacher": [3] * 2}


def test_each_resolution_is_one_pass_of_the_backbone(method):
    sizes = []
    method.student.backbone.patch_embed.register_forward_hook(
        lambda module, args, output: sizes.append(tuple(args[0].shape[::3]))
    )
    method(crops(64, 64, 32, 32, 32), STEP)
    assert sizes == [(6, 64), (9, 32)]


def test_teacher_follows_after_the_step_by_this_steps_momentum(method):
    weight, average = method.student.head.mlp[0].weight, method.teacher.head.mlp[0].weight
    before = average.detach().clone()
    weight.data.add_(1)
    method.before_step(STEP)
    assert torch.equal(average, before)
    method.after_step(STEP)
    torch.testing.assert_close(average.detach(), before + 0.25)


def test_temperature_changes_between_epochs_only():
    recipe = dataclasses.replace(
        DINORecipe.tiny(), teacher_temperature=0.07, teacher_temperature_epochs=4, epochs=6
    )
    table = DINO(recipe).schedules(Plan(6, 5, 32, 160))["teacher_temperature"].reshape(6, 5)
    assert (table == table[:, :1]).all()
    np.testing.assert_allclose(table[:, 0], [*np.linspace(0.02, 0.07, 4), 0.07, 0.07])


@pytest.mark.parametrize(("epochs", "warmup"), [(3, 5), (3, 3), (3, 0), (1, 0)])
def test_tables_fit_runs_of_any_length(epochs, warmup):
    table = optim.epoch_table(0.04, 0.07, warmup, epochs, 2)
    whole = [*np.linspace(0.04, 0.07, warmup), *[0.07] * epochs][:epochs]
    np.testing.assert_allclose(table, np.repeat(whole, 2))


@pytest.mark.parametrize("warmup", [0, 4, 20, 30])
def test_peak_comes_twice_after_a_warmup_and_the_end_is_never_reached(warmup):
    lr = optim.linspace_cosine(1.0, 0.1, 20, warmup_steps=warmup)
    assert len(lr) == 20
    assert lr[0] == (1.0 if warmup == 0 else 0.0)
    if 0 < warmup < 20:
        assert lr[warmup - 1] == lr[warmup] == 1.0
    assert lr[-1] > 0.1


def test_prototype_scale_is_frozen_unless_asked_for():
    for norm, trained in ((True, False), (False, True)):
        head = DINOHead(6, 4, hidden=8, bottleneck=5, norm_last_layer=norm)
        assert head.last_layer.weight_g.requires_grad is trained
        assert torch.equal(head.last_layer.weight_g, torch.ones(4, 1))


def test_only_the_student_drops_paths_more_and_more_with_depth():
    method = DINO(dataclasses.replace(DINORecipe.tiny(), drop_path=0.1))

    def rates(network):
        drops = [block.drop_path1 for block in network.backbone.blocks]
        return [drop.drop_prob for drop in drops if isinstance(drop, DropPath)]

    assert rates(method.student) == pytest.approx([0.1 / 3, 0.2 / 3, 0.1])
    assert rates(method.teacher) == []


def test_transformer_starts_as_released(method):
    vit = method.student.backbone
    assert {m.eps for m in vit.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
    for weight in (vit.cls_token, vit.pos_embed, vit.blocks[0].attn.qkv.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert not vit.blocks[0].attn.qkv.bias.any()
    for (name, a), b in zip(method.student.named_parameters(), method.teacher.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_boosted_preset_is_the_readmes_command():
    r, plain = DINORecipe.boosted(), DINORecipe()
    changed = {name: value for name, value in vars(r).items() if value != getattr(plain, name)}
    assert changed == {
        "epochs": 300,
        "norm_last_layer": False,
        "teacher_temperature": 0.07,
        "teacher_temperature_epochs": 30,
    }


def test_resnet_preset_is_the_readmes_command_without_drop_path_and_with_residual_norms_at_one():
    r = dataclasses.replace(DINORecipe.resnet50(), prototypes=8, head_hidden=8, head_bottleneck=4)
    assert (r.optimizer, r.lr, r.batch_size) == ("sgd", 0.03, 512)
    assert (r.weight_decay, r.final_weight_decay) == (1e-4, 1e-4)
    assert (r.global_scale, r.local_scale) == ((0.14, 1.0), (0.05, 0.14))
    method = DINO(r)
    weight = method.student.backbone.layer1[0].bn3.weight
    assert torch.equal(weight, torch.ones_like(weight))
    assert not any(isinstance(module, DropPath) for module in method.modules())
    assert (method.schedules(Plan(r.epochs, 2, 512, 1024))["weight_decay"] == 1e-4).all()


@pytest.mark.parametrize("backbone", ["resnet18", "vit_mini_patch8"])
def test_teacher_says_of_both_crops_what_it_says_of_them_together(backbone, monkeypatch):
    """A ViT takes one after the other; a ResNet's batch norms must see both, as the authors' do."""
    recipe = dataclasses.replace(DINORecipe.tiny(), backbone=backbone, local_crops=0, prototypes=16)
    torch.manual_seed(0)
    method, seen = DINO(recipe), []
    crops = [torch.randn(4, 3, 64, 64), 3 + torch.randn(4, 3, 64, 64)]
    monkeypatch.setattr(method.centre, "observe", seen.append)
    method(Views(list(crops)), STEP)
    together = method.teacher.head(backbones.features(method.teacher.backbone, torch.cat(crops)).pooled)
    torch.testing.assert_close(seen[0], together)
