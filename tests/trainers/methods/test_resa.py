"""ReSA against vectors made with winci-ai/resa, at the tolerances of its fact sheet."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import teacher
from dse_monitor.trainers.blocks.objectives import sinkhorn
from dse_monitor.trainers.method import Plan, Progress, Views
from dse_monitor.trainers.methods.resa import ReSA, ReSARecipe, assignment, resa_loss

ASSIGNMENT = {"rtol": 1e-5, "atol": 1e-6}
GRADIENT = {"rtol": 1e-4, "atol": 1e-7}


@pytest.fixture(scope="module")
def g(golden):
    return golden("resa")


def test_assignment_equals_official(g):
    h, h_momentum = g["h_online"][0], g["h_momentum"][0]
    torch.testing.assert_close(F.normalize(h) @ F.normalize(h_momentum).T, g["scores"], **ASSIGNMENT)
    ours = assignment(h, h_momentum, g["sinkhorn_temperature"], g["sinkhorn_iterations"])
    torch.testing.assert_close(ours, g["assignment"], **ASSIGNMENT)
    alone = sinkhorn(g["sinkhorn.scores"], g["sinkhorn.temp"], g["sinkhorn.iterations"])
    torch.testing.assert_close(alone, g["sinkhorn.assignment"], **ASSIGNMENT)


def test_loss_and_gradient_equal_official(g):
    online = g["emb_online"].clone().requires_grad_()
    loss = resa_loss(list(online), list(g["emb_momentum"]), g["assignment"], g["temperature"])
    loss.backward()
    torch.testing.assert_close(loss.detach(), g["loss"], **ASSIGNMENT)
    torch.testing.assert_close(online.grad, g["grad_emb_online"], **GRADIENT)


def test_momentum_update_equals_official(g):
    online, momentum = nn.Module(), nn.Module()
    online.w = nn.Parameter(g["ema.online_weight"].clone())
    momentum.w = nn.Parameter(g["ema.before"].clone())
    teacher.ema_update(momentum, online, g["ema.momentum"])
    torch.testing.assert_close(momentum.w.data, g["ema.after"], rtol=1e-6, atol=1e-7)


def test_schedules_equal_official(g):
    recipe = ReSARecipe(
        backbone="resnet_mini",
        lr=g["sched.base_lr"],
        warmup_epochs=g["sched.warmup_epochs"],
        teacher_momentum=g["sched.base_momentum"],
        final_lr_fraction=g["sched.final_lr"] / g["sched.peak_lr"],
    )
    batch = g["sched.batch_per_gpu"] * g["sched.world_size"]
    schedules = ReSA(recipe).schedules(Plan(g["sched.epochs"], g["sched.iters_per_epoch"], batch, images=1))
    np.testing.assert_allclose(schedules["lr"], g["sched.lr_per_step"].numpy(), rtol=1e-9)
    np.testing.assert_allclose(schedules["teacher_momentum"], g["sched.momentum_per_step"].numpy(), rtol=1e-9)
    assert schedules["lr"].max() == pytest.approx(g["sched.peak_lr"])


def test_first_view_is_weak():
    weak, strong = ReSA(ReSARecipe.tiny()).views().crops
    assert (weak.jitter_probability, weak.grey, weak.blur, weak.interpolation) == (0.0, 0.0, 0.0, "bilinear")
    assert (strong.jitter_probability, strong.blur, strong.solarise, strong.interpolation) == (
        0.8,
        0.5,
        0.2,
        "bicubic",
    )


# What is easily got wrong, one claim each ------------------------------------------------------------------

MANY = {
    "strong_crops": (1, 2),
    "further_sizes": (32,),
    "min_scales": (0.32, 0.05),
    "max_scales": (1.0, 0.32),
    "solarise": (0.2, 0.0),
}


def tiny(**options):
    torch.manual_seed(0)
    return ReSA(dataclasses.replace(ReSARecipe.tiny(), **options))


def progress(batch=4):
    return Progress(Plan(1, 1, batch, batch), 0, {"teacher_momentum": 0.5})


def test_official_recipe_sees_one_weak_and_one_strong_view_of_the_same_size():
    with torch.device("meta"):
        weak, strong = ReSA(ReSARecipe()).views().crops
    assert (weak.size, weak.scale, weak.flip) == (224, (0.2, 1.0), 0.5)
    assert (strong.size, strong.scale, strong.flip_last) == (224, (0.2, 1.0), True)


def test_further_views_follow_their_lists():
    weak, *strong = tiny(**MANY).views().crops
    assert weak.scale == (0.32, 1.0)  # the first entries are the weak view's too
    assert [(c.size, c.scale, c.solarise, c.blur) for c in strong] == [
        (64, (0.32, 1.0), 0.2, 0.5),
        (32, (0.05, 0.32), 0.0, 0.5),
        (32, (0.05, 0.32), 0.0, 0.5),
    ]
    seen = tiny(**MANY).views()(Image.new("RGB", (90, 80)))
    assert [image.shape[-1] for image in seen.images] == [64, 64, 32, 32]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strong_crops": (1, 2)}, "one entry per size"),
        ({"further_sizes": (32,)}, "one entry per size"),
        ({"strong_crops": (0,)}, "no view"),
    ],
)
def test_lists_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options).views()


def loop(online, momentum, targets, temperature):
    """The loss as nested loops over pairs of different views."""
    terms = [
        -(targets * F.log_softmax(F.normalize(e) @ F.normalize(m).T / temperature, 1)).sum(1).mean()
        for q, e in enumerate(online)
        for v, m in enumerate(momentum)
        if v != q
    ]
    return sum(terms) / len(terms), len(terms)


@pytest.mark.parametrize(("views", "pairs"), [(2, 2), (3, 4), (5, 8)])
def test_every_view_is_compared_with_the_first_two_but_not_with_itself(views, pairs):
    online, momentum = torch.randn(views, 7, 5), torch.randn(2, 7, 5)
    targets = torch.softmax(torch.randn(7, 7), 1)
    expected, count = loop(online, momentum, targets, 0.3)
    assert count == pairs
    torch.testing.assert_close(resa_loss(list(online), list(momentum), targets, 0.3), expected)


def test_assignment_comes_from_encoder_features_of_the_weak_view_alone():
    method = tiny(**MANY).train()
    images = [torch.randn(4, 3, size, size) for size in (64, 64, 32, 32)]
    values = progress()
    state = {name: value.clone() for name, value in method.state_dict().items()}
    loss = method(Views(images), values).loss
    method.load_state_dict(state)  # the same running statistics
    with torch.no_grad():
        h = backbones.features(method.student.backbone, images[0]).pooled
        h_momentum = backbones.features(method.teacher.backbone, images[0]).pooled
        targets = assignment(h, h_momentum, 0.05, 3)
        online = [method.predictor(method.student(image)[0]) for image in images]
        momentum = [method.teacher(image)[0] for image in images[:2]]
    torch.testing.assert_close(loss.detach(), loop(online, momentum, targets, 0.4)[0])


def test_dense_tokens_are_those_of_the_large_views():
    method = tiny(**MANY)
    images = [torch.randn(4, 3, size, size) for size in (64, 64, 32, 32)]
    assert method(Views(images), progress()).dense.shape == (8, 2 * 2, 128)


def test_momentum_network_sees_the_first_two_views_and_no_predictor():
    method, seen = tiny(**MANY), []
    method.teacher.projector.register_forward_hook(lambda *_: seen.append("teacher"))
    method.predictor.register_forward_hook(lambda *_: seen.append("predictor"))
    method(Views([torch.randn(4, 3, size, size) for size in (64, 64, 32, 32)]), progress())
    assert (seen.count("teacher"), seen.count("predictor")) == (2, 4)


def test_predictor_can_be_left_out():
    method = tiny(predict=False, projector_layers=2)
    assert not list(method.predictor.parameters())
    assert [type(m).__name__ for m in method.student.projector] == [
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
        "BatchNorm1d",
    ]
    method(Views(list(torch.randn(2, 4, 3, 64, 64))), progress()).loss.backward()


def test_momentum_network_moves_before_it_is_read_and_buffers_stay_its_own():
    method = tiny()
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(1.0)
        method.student.backbone.bn1.running_mean.fill_(5.0)
    expected = (method.teacher.projector[0].weight + method.student.projector[0].weight) / 2
    method.before_step(progress())
    torch.testing.assert_close(method.teacher.projector[0].weight, expected)
    assert not method.teacher.backbone.bn1.running_mean.any()


def test_rows_of_the_assignment_sum_to_one_and_carry_no_gradient():
    online = torch.randn(5, 8, requires_grad=True)
    targets = assignment(online, torch.randn(5, 8), 0.05, 3)
    torch.testing.assert_close(targets.sum(1), torch.ones(5))
    assert not targets.requires_grad


def test_assignment_does_not_overflow_in_half_precision():
    features = torch.randn(6, 8)
    expected = assignment(features, features, 0.05, 3)
    half = assignment(features.half(), features.half(), 0.05, 3)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=0.1, atol=1e-3)
    with torch.autocast("cpu", torch.float16):
        assert torch.isfinite(sinkhorn(features.half() @ features.half().T / 10, 0.05, 3)).all()


def test_learning_rate_ends_at_a_tenth_of_its_scaled_peak():
    recipe = dataclasses.replace(ReSARecipe.tiny(), warmup_epochs=0)
    lr = ReSA(recipe).schedules(Plan(200, 10, 1024, images=10240))["lr"]
    assert lr[0] == pytest.approx(2.0)
    assert lr[-1] == pytest.approx(0.2, rel=1e-4)


def test_everything_is_decayed():
    method = tiny()
    (group,) = method.parameter_groups()
    assert group.weight_decay == "weight_decay"
    assert {id(p) for _, p in group.parameters} == {id(p) for p in method.parameters() if p.requires_grad}


def test_readmes_runs_are_presets():
    four, long = ReSARecipe.four_gpus(), ReSARecipe.four_gpus_800()
    assert (four.batch_size, four.warmup_epochs, four.epochs, four.lr) == (1024, 10, 100, 0.5)
    assert (long.batch_size, long.warmup_epochs, long.epochs, long.lr) == (1024, 10, 800, 0.4)
