"""MoCo v3 against vectors made with facebookresearch/moco-v3, at the tolerances of its fact sheet."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim, teacher
from dse_monitor.trainers.blocks.heads import mlp
from dse_monitor.trainers.method import Plan, Progress, Views
from dse_monitor.trainers.methods.mocov3 import MoCoV3, MoCoV3Recipe, contrast, initialise

LOSS = {"rtol": 1e-5, "atol": 0.0}
GRADIENT = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def g(golden):
    return golden("mocov3")


def test_loss_and_gradients_equal_official(g):
    q1, q2 = (g[f"loss/{name}"].clone().requires_grad_() for name in ("q1", "q2"))
    first = contrast(q1, g["loss/k2"], g["temperature"])
    second = contrast(q2, g["loss/k1"], g["temperature"])
    (first + second).backward()
    torch.testing.assert_close(first.detach(), g["loss/term_q1_k2"], **LOSS)
    torch.testing.assert_close(second.detach(), g["loss/term_q2_k1"], **LOSS)
    torch.testing.assert_close((first + second).detach(), g["loss/total"], **LOSS)
    torch.testing.assert_close(q1.grad, g["loss/grad_q1"], **GRADIENT)
    torch.testing.assert_close(q2.grad, g["loss/grad_q2"], **GRADIENT)


@pytest.mark.parametrize("rank", [0, 1])
def test_loss_on_one_of_two_processes_equals_official(g, rank):
    q1, q2 = (g[f"loss/{name}"].clone().requires_grad_() for name in ("q1", "q2"))
    keys = {}
    for name in ("k1", "k2"):
        blocks = [g[f"loss/{name}"], g[f"dist/other_{name}"]]
        keys[name] = torch.cat(blocks if rank == 0 else blocks[::-1])
    loss = contrast(q1, keys["k2"], g["temperature"], rank * g["batch"])
    loss = loss + contrast(q2, keys["k1"], g["temperature"], rank * g["batch"])
    loss.backward()
    torch.testing.assert_close(loss.detach(), g[f"dist/rank{rank}_total"], **LOSS)
    torch.testing.assert_close(q1.grad, g[f"dist/rank{rank}_grad_q1"], **GRADIENT)
    torch.testing.assert_close(q2.grad, g[f"dist/rank{rank}_grad_q2"], **GRADIENT)


@pytest.mark.parametrize("name", ["projector", "predictor"])
def test_heads_equal_official_in_both_modes(g, name):
    layers = g[f"{name}/num_layers"]
    hidden, width = g[f"{name}/param/0.weight"].shape
    output = g[f"{name}/param/{3 * (layers - 1)}.weight"].shape[0]
    widths = (width, *[hidden] * (layers - 1), output)
    head = mlp(widths, bias=False, last_bias=False, last_norm="plain")
    prefix = f"{name}/param/"
    head.load_state_dict({k[len(prefix) :]: v for k, v in g.items() if k.startswith(prefix)})
    x = g[f"{name}/in"].clone().requires_grad_()
    out = head(x)
    torch.testing.assert_close(out.detach(), g[f"{name}/out_train"], rtol=1e-4, atol=1e-6)
    (out * g[f"{name}/cotangent"]).sum().backward()
    torch.testing.assert_close(x.grad, g[f"{name}/grad_in"], rtol=1e-4, atol=1e-5)
    prefix = f"{name}/after/"
    for key, value in g.items():
        if key.startswith(prefix):
            torch.testing.assert_close(head.state_dict()[key[len(prefix) :]], value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        head.eval()(g[f"{name}/in"]).detach(), g[f"{name}/out_eval"], rtol=1e-4, atol=1e-6
    )


def test_the_methods_heads_are_the_official_ones(g):
    """No biases, and a last norm without parameters: the same tensors in the same places."""
    method = MoCoV3(MoCoV3Recipe.tiny())
    for name, head in (("projector", method.student.projector), ("predictor", method.predictor)):
        prefix = f"{name}/param/"
        assert set(head.state_dict()) == {k[len(prefix) :] for k in g if k.startswith(prefix)}


@pytest.fixture(scope="module")
def network(g):
    spec = backbones.describe(
        "vit_mini_patch8",
        g["vit/img_size"],
        patch_size=g["vit/patch_size"],
        embed_dim=g["vit/embed_dim"],
        num_heads=g["vit/num_heads"],
    )
    model = backbones.build(spec)
    initialise(model, freeze_patches=True)
    return model


def test_positions_equal_official(g, network):
    torch.testing.assert_close(network.pos_embed.data, g["vit/pos_embed"], rtol=0, atol=1e-6)


def test_initialisation_stays_within_the_official_bounds(g, network):
    patch, qkv = network.patch_embed.proj.weight.abs().max(), network.blocks[0].attn.qkv.weight.abs().max()
    assert 0.98 * g["vit/patch_proj_uniform_bound"] < patch <= g["vit/patch_proj_uniform_bound"]
    assert 0.98 * g["vit/qkv_uniform_bound"] < qkv <= g["vit/qkv_uniform_bound"]
    mlp = network.blocks[0].mlp.fc1.weight  # the others by Xavier's rule
    bound = (6 / sum(mlp.shape)) ** 0.5
    assert 0.98 * bound < mlp.abs().max() <= bound
    assert network.patch_embed.proj.bias.abs().max() == g["vit/patch_proj_bias_absmax"]
    assert network.cls_token.abs().max() < 6 * g["vit/cls_token_std"]


def test_what_is_frozen_equals_official(g, network):
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == set(g["vit/frozen_params"].split("\n"))


def test_momentum_update_equals_official(g):
    base, momentum = nn.Module(), nn.Module()
    base.w = nn.Parameter(g["ema/base"].clone())
    momentum.w = nn.Parameter(g["ema/momentum_before"].clone())
    teacher.ema_update(momentum, base, g["ema/m"])
    torch.testing.assert_close(momentum.w.data, g["ema/momentum_after"], rtol=1e-6, atol=1e-7)


def test_schedules_equal_official(g):
    recipe = MoCoV3Recipe(
        backbone="vit_mini_patch8",
        num_heads=3,
        image_size=64,
        hidden=8,
        projection=4,
        lr=g["sched/base_lr"],
        warmup_epochs=g["sched/warmup_epochs"],
        teacher_momentum=g["sched/momentum_base"],
    )
    plan = Plan(g["sched/epochs"], g["sched/iters_per_epoch"], g["sched/total_batch"], images=1)
    schedules = MoCoV3(recipe).schedules(plan)
    np.testing.assert_allclose(schedules["lr"], g["sched/lr"].numpy(), atol=1e-12, rtol=0)
    np.testing.assert_allclose(schedules["teacher_momentum"], g["sched/momentum"].numpy(), atol=1e-12, rtol=0)


def test_small_has_the_authors_twelve_heads():
    method = MoCoV3(MoCoV3Recipe(hidden=8, projection=4))
    assert method.backbone_spec.num_heads == 12
    assert method.backbone_spec.width == 384


def test_norms_biases_and_cls_token_are_decayed():
    method = MoCoV3(MoCoV3Recipe.tiny())
    (group,) = method.parameter_groups()
    names = {name for name, _ in group.parameters}
    assert {"backbone.cls_token", "backbone.norm.weight", "backbone.blocks.0.attn.qkv.bias"} <= names
    assert "backbone.patch_embed.proj.weight" not in names
    assert group.weight_decay == "weight_decay"


def test_queries_that_cannot_tell_keys_apart_cost_two_tau_log_batch():
    same = torch.ones(5, 3)
    for temperature in (0.2, 1.0):
        expected = 2 * temperature * np.log(5)
        assert contrast(same, same, temperature).item() == pytest.approx(expected, rel=1e-6)


def test_loss_contrasts_the_predictors_output_with_keys_of_the_other_view():
    torch.manual_seed(0)
    method = MoCoV3(MoCoV3Recipe.tiny())
    images = [torch.randn(3, 3, 64, 64) for _ in range(2)]
    with torch.no_grad():
        q1, q2 = (F.normalize(method.predictor(method.student(x)[0]), dim=1) for x in images)
        k1, k2 = (F.normalize(method.teacher(x)[0], dim=1) for x in images)
        terms = [F.cross_entropy(q @ k.T / 0.2, torch.arange(3)) for q, k in ((q1, k2), (q2, k1))]
        loss = method(Views(images), Progress(Plan(1, 1, 3, 3))).loss
    torch.testing.assert_close(loss, 0.4 * (terms[0] + terms[1]), rtol=1e-5, atol=0)


def test_momentum_encoder_moves_before_it_makes_the_keys_and_not_after():
    method = MoCoV3(MoCoV3Recipe.tiny())
    progress = Progress(Plan(1, 1, 4, 4), 0, {"teacher_momentum": 0.75})
    weight, key = method.student.projector[0].weight, method.teacher.projector[0].weight
    before = key.clone()
    weight.data.add_(1)
    method.before_step(progress)
    torch.testing.assert_close(key, before + 0.25)
    method.after_step(progress)
    torch.testing.assert_close(key, before + 0.25)


def test_key_branch_has_norm_statistics_of_its_own():
    method = MoCoV3(MoCoV3Recipe.tiny())
    method.student.projector[1].running_mean.fill_(7)
    method.before_step(Progress(Plan(1, 1, 4, 4), 0, {"teacher_momentum": 0.0}))
    assert not method.teacher.projector[1].running_mean.any()
    with torch.no_grad():
        method(Views([torch.randn(4, 3, 64, 64) for _ in range(2)]), Progress(Plan(1, 1, 4, 4)))
    assert method.teacher.projector[1].num_batches_tracked == 2


def test_views_are_bilinear_flipped_last_and_asymmetric():
    one, two = MoCoV3(MoCoV3Recipe.tiny()).views().crops
    for crop in (one, two):
        assert (crop.interpolation, crop.flip_last, crop.scale) == ("bilinear", True, (0.08, 1.0))
        assert crop.jitter == (0.4, 0.4, 0.2, 0.1)
    assert ((one.blur, one.solarise), (two.blur, two.solarise)) == ((1.0, 0.0), (0.1, 0.2))


@pytest.fixture(scope="module")
def resnet():
    return MoCoV3(dataclasses.replace(MoCoV3Recipe.resnet50(), hidden=8, projection=4))


def test_resnet_preset_is_the_official_command(resnet):
    r = MoCoV3Recipe.resnet50()
    assert (r.optimizer, r.lr, r.weight_decay, r.sgd_momentum) == ("lars", 0.6, 1e-6, 0.9)
    assert (r.batch_size, r.epochs, r.warmup_epochs) == (4096, 100, 10)
    assert (r.smallest_crop, r.temperature, r.teacher_momentum) == (0.2, 1.0, 0.99)
    plan = Plan(r.epochs, 10, r.batch_size, images=1)
    assert resnet.schedules(plan)["lr"].max() == pytest.approx(9.6)  # 0.6 x 4096 / 256
    assert {crop.scale for crop in resnet.views().crops} == {(0.2, 1.0)}


def test_resnet_heads_are_a_layer_shorter_and_the_predictor_ends_without_a_norm(resnet):
    kinds = [[type(m).__name__ for m in head] for head in (resnet.student.projector, resnet.predictor)]
    hidden = ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert kinds == [[*hidden, "BatchNorm1d"], hidden]
    assert resnet.student.projector[4].weight is None
    assert [m.bias for head in (resnet.student.projector, resnet.predictor) for m in head[::3]] == [None] * 4
    assert all(p.requires_grad for p in resnet.student.parameters())


def test_resnet_blocks_start_as_identities(resnet):
    assert not resnet.student.backbone.layer1[0].bn3.weight.any()


def test_lars_neither_decays_nor_adapts_one_dimensional_parameters(resnet):
    groups = resnet.parameter_groups()
    optimizer = optim.build(resnet.recipe, groups)
    for entry, group in zip(optimizer.param_groups, groups, strict=True):
        entry.update(lr=0.5, weight_decay=0.1 if group.weight_decay else 0.0)
    vector, matrix = resnet.student.backbone.bn1.weight, resnet.predictor[0].weight
    before = vector.detach().clone(), matrix.detach().clone()
    for parameter in (vector, matrix):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.testing.assert_close(vector.detach(), before[0] - 0.5)
    update = 1 + 0.1 * before[1]
    ratio = 1e-3 * before[1].norm() / update.norm()
    torch.testing.assert_close(matrix.detach(), before[1] - 0.5 * ratio * update, rtol=1e-5, atol=1e-7)
