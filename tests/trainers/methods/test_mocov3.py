"""MoCo v3 against vectors made with facebookresearch/moco-v3, at the tolerances of its fact sheet."""

import numpy as np
import pytest
import torch
from torch import nn

from trainers import backbones, teacher
from trainers.heads import mlp
from trainers.method import Plan
from trainers.methods.mocov3 import MoCoV3, MoCoV3Recipe, contrast, initialise

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
    last = 6 if name == "projector" else 3
    hidden, width = g[f"{name}/param/0.weight"].shape
    output = g[f"{name}/param/{last}.weight"].shape[0]
    widths = (width, *[hidden] * (g[f"{name}/num_layers"] - 1), output)
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
