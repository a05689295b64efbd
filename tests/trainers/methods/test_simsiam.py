"""SimSiam against vectors made with facebookresearch/simsiam, at the tolerances of its fact sheet."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from dse_monitor.trainers.blocks.heads import mlp
from dse_monitor.trainers.method import Plan, Progress, Views
from dse_monitor.trainers.methods.simsiam import SimSiam, SimSiamRecipe, simsiam_loss

LOSS = {"rtol": 1e-5, "atol": 0.0}
GRADIENT = {"rtol": 1e-4, "atol": 1e-7}
HEADS = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def g(golden):
    return golden("simsiam")


def test_loss_and_gradients_equal_official(g):
    p1, p2, z1, z2 = (g[name].clone().requires_grad_() for name in ("p1", "p2", "z1", "z2"))
    loss = simsiam_loss(p1, p2, z1, z2)
    loss.backward()
    torch.testing.assert_close(loss.detach(), g["loss"], **LOSS)
    torch.testing.assert_close(p1.grad, g["grad_p1"], **GRADIENT)
    torch.testing.assert_close(p2.grad, g["grad_p2"], **GRADIENT)
    assert z1.grad is None
    assert z2.grad is None


def test_heads_and_their_gradients_equal_official(g):
    output, width = g["heads.param.encoder.fc.6.weight"].shape
    hidden = len(g["heads.param.predictor.0.weight"])
    projector = mlp((width, width, width, output), bias=False, last_norm="plain")
    projector[6].bias.requires_grad_(False)
    predictor = mlp((output, hidden, output), bias=False)
    for prefix, head in (("encoder.fc.", projector), ("predictor.", predictor)):
        with torch.no_grad():
            for name, parameter in head.named_parameters():
                parameter.copy_(g[f"heads.param.{prefix}{name}"])
    z1, z2 = projector(g["heads.x1"]), projector(g["heads.x2"])
    p1, p2 = predictor(z1), predictor(z2)
    for name, value in {"z1": z1, "z2": z2, "p1": p1, "p2": p2}.items():
        torch.testing.assert_close(value.detach(), g[f"heads.{name}"], **HEADS)
    loss = simsiam_loss(p1, p2, z1, z2)
    loss.backward()
    torch.testing.assert_close(loss.detach(), g["heads.loss"], **HEADS)
    for prefix, head in (("encoder.fc.", projector), ("predictor.", predictor)):
        for name, parameter in head.named_parameters():
            expected = g.get(f"heads.grad.{prefix}{name}")
            assert (parameter.grad is None) == (expected is None), name
            if expected is not None:
                torch.testing.assert_close(parameter.grad, expected, **HEADS)


def test_schedules_equal_official(g):
    method = SimSiam(SimSiamRecipe(backbone="resnet_mini", lr=g["sched.base_lr"], epochs=g["sched.epochs"]))
    schedules = method.schedules(Plan(g["sched.epochs"], 3, g["sched.batch_size"], images=1536))
    np.testing.assert_allclose(schedules["lr"][::3], g["sched.lr_per_epoch"].numpy(), rtol=1e-9)
    fixed = g["sched.lr_predictor_fixed_per_epoch"].numpy()
    np.testing.assert_allclose(schedules["lr_predictor"][::3], fixed, rtol=1e-9)
    assert schedules["lr"][0] == schedules["lr"][2] != schedules["lr"][3]  # once per epoch


def test_everything_that_trains_is_decayed():
    method = SimSiam(SimSiamRecipe.tiny())
    groups = method.parameter_groups()
    named = {name for group in groups for name, _ in group.parameters}
    assert [group.weight_decay for group in groups] == ["weight_decay", "weight_decay"]
    assert any(name.endswith("bn1.bias") for name in named)
    assert "projector.6.bias" not in named


@pytest.fixture(scope="module")
def tiny():
    return SimSiam(SimSiamRecipe.tiny())


def test_heads_have_the_official_parameters_and_a_bias_that_never_trains(g, tiny):
    heads = {"encoder.fc.": tiny.student.projector, "predictor.": tiny.predictor}
    names = {f"{prefix}{name}" for prefix, head in heads.items() for name, _ in head.named_parameters()}
    trained = {
        f"{prefix}{name}"
        for prefix, head in heads.items()
        for name, parameter in head.named_parameters()
        if parameter.requires_grad
    }
    assert names == {k.removeprefix("heads.param.") for k in g if k.startswith("heads.param.")}
    assert trained == {k.removeprefix("heads.grad.") for k in g if k.startswith("heads.grad.")}


def test_hidden_layers_are_as_wide_as_the_features(tiny):
    width, output = tiny.backbone_spec.width, tiny.recipe.projection
    assert width != output
    shapes = [tuple(layer.weight.shape) for layer in tiny.student.projector if isinstance(layer, nn.Linear)]
    assert shapes == [(width, width), (width, width), (output, width)]


def test_gradient_flows_through_predictions_alone(tiny):
    """With the predictor cut off from the graph nothing is left for the encoder."""
    detached = [torch.randn(4, 8) for _ in range(2)]
    targets = [torch.randn(4, 8, requires_grad=True) for _ in range(2)]
    assert not simsiam_loss(*detached, *targets).requires_grad


def test_agreeing_views_cost_minus_one_and_opposed_ones_one():
    x, y = torch.randn(2, 5, 7)
    assert simsiam_loss(x, y, y, 3 * x).item() == pytest.approx(-1, abs=1e-6)
    assert simsiam_loss(x, y, -y, -x).item() == pytest.approx(1, abs=1e-6)


def test_each_view_is_a_pass_of_its_own(tiny):
    """Batch statistics are per view, not over both."""
    counted = SimSiam(SimSiamRecipe.tiny())
    with torch.no_grad():
        counted(Views([torch.randn(4, 3, 64, 64) for _ in range(2)]), Progress(Plan(1, 1, 4, 4)))
    norms = [counted.student.backbone.bn1, counted.student.projector[1], counted.predictor[1]]
    assert [norm.num_batches_tracked.item() for norm in norms] == [2, 2, 2]


@pytest.mark.parametrize("fixed", [True, False])
def test_only_the_predictors_learning_rate_can_stay(fixed):
    method = SimSiam(dataclasses.replace(SimSiamRecipe.tiny(), fixed_predictor_lr=fixed))
    encoder, predictor = method.parameter_groups()
    assert encoder.lr == "lr"
    assert predictor.lr == ("lr_predictor" if fixed else "lr")
    assert {name for name, _ in predictor.parameters} == {n for n, _ in method.predictor.named_parameters()}


def test_residual_blocks_start_as_identities(tiny):
    assert not tiny.student.backbone.layer1[0].bn2.weight.any()


def test_views_are_alike_with_strong_saturation_blurred_before_the_flip(tiny):
    one, two = tiny.views().crops
    assert one == two
    assert one.jitter == (0.4, 0.4, 0.4, 0.1)
    assert (one.scale, one.interpolation, one.blur, one.solarise) == ((0.2, 1.0), "bilinear", 0.5, 0.0)
    assert one.flip_last
