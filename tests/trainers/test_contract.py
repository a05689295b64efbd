"""What every method must do, whatever it computes: one test file over the table and installed plugins."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dse_monitor.checkpoints import load_encoder
from dse_monitor.seeding import seeded
from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim
from dse_monitor.trainers.engine.trainer import Trainer
from dse_monitor.trainers.method import Method, Plan, Progress, Views, normalise
from dse_monitor.trainers.methods import REGISTRY, load
from dse_monitor.trainers.settings import Settings

BATCH = 8


@pytest.fixture(params=REGISTRY.names(), scope="module")
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def method_type(name) -> type[Method]:
    return load(name)


@pytest.fixture
def method(method_type) -> Method:
    torch.manual_seed(0)
    return method_type(method_type.recipe_type.tiny())


def images(count: int, size: int = 64) -> list[Image.Image]:
    """Blobs of colour, different from each other, so that a loss has something to tell apart."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return [Image.fromarray(x).resize((size, size), Image.Resampling.BICUBIC) for x in small]


def batch_of(method: Method):
    view, join = method.views(), method.collator()
    samples = []
    for i, image in enumerate(images(BATCH)):
        with seeded(0, 0, i):
            samples.append(view(image))
    with seeded(0, 0):
        return normalise(join(samples, 0), method.mean, method.std)


class Steps:
    """The engine's order of hooks, without anything else of the engine."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.plan = Plan(epochs=2, steps_per_epoch=12, batch_size=BATCH, images=BATCH * 12)
        self.schedules = method.schedules(self.plan)
        self.groups = method.parameter_groups()
        self.optimizer = optim.build(method.recipe, self.groups)

    def progress(self, step: int) -> Progress:
        return Progress(self.plan, step, {k: float(v[step]) for k, v in self.schedules.items()})

    def __call__(self, views, step: int, *, still: bool = False) -> float:
        """One step; ``still`` keeps teachers and centres where they are, so that the targets do not move."""
        progress = self.progress(step)
        for entry, group in zip(self.optimizer.param_groups, self.groups, strict=True):
            entry["lr"] = progress.values[group.lr] * group.lr_scale
            entry["weight_decay"] = progress.values[group.weight_decay] if group.weight_decay else 0.0
        if not still:
            self.method.before_step(progress)
        out = self.method(views, progress)
        self.optimizer.zero_grad(set_to_none=True)
        out.loss.backward()
        self.method.after_backward(progress)
        self.optimizer.step()
        if not still:
            self.method.after_step(progress)
        return out.loss.item()


def test_loss_falls_on_a_repeated_batch(method):
    views, run = batch_of(method), Steps(method)
    run.method.before_step(run.progress(12))
    losses = []
    for step in range(12, 24):  # the second epoch: nothing is frozen any more
        torch.manual_seed(1)  # the same masks and drop paths each time: one fixed problem
        losses.append(run(views, step, still=True))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_no_gradient_reaches_a_teacher(method):
    Steps(method)(batch_of(method), 0)
    for name in method.teachers:
        parameters = list(method.get_submodule(name).parameters())
        assert parameters
        assert all(p.grad is None and not p.requires_grad for p in parameters)


def test_every_trainable_parameter_is_in_one_group(method):
    identities = [id(p) for group in method.parameter_groups() for _, p in group.parameters]
    assert len(identities) == len(set(identities))
    assert set(identities) == {id(p) for p in method.parameters() if p.requires_grad}


def test_dense_tokens_carry_gradient_to_the_encoder(method):
    run = Steps(method)
    progress = run.progress(0)
    method.before_step(progress)
    dense = method(batch_of(method), progress).dense
    assert dense is not None
    assert dense.dim() == 3
    assert dense.shape[-1] == method.backbone_spec.width
    dense.square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


def test_schedules_cover_every_step(method):
    schedules = method.schedules(Plan(epochs=5, steps_per_epoch=7, batch_size=64, images=64 * 7))
    assert "lr" in schedules
    for name, values in schedules.items():
        assert values.shape == (35,), name
        assert values.dtype == np.float64, name
        assert np.isfinite(values).all(), name
    for group in method.parameter_groups():
        assert {group.lr, group.weight_decay} - {""} <= set(schedules), group.name


def test_state_dict_resumes_training_bit_for_bit(method_type, method):
    views, run = batch_of(method), Steps(method)
    for step in range(2):
        torch.manual_seed(step)
        run(views, step)
    file = io.BytesIO()
    torch.save({"model": method.state_dict(), "optimizer": run.optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    torch.manual_seed(99)
    resumed = Steps(method_type(method.recipe))
    resumed.method.load_state_dict(saved["model"])
    resumed.optimizer.load_state_dict(saved["optimizer"])
    for step in range(2, 4):
        torch.manual_seed(step)
        first = run(views, step)
        torch.manual_seed(step)
        assert resumed(views, step) == first
    for name, tensor in method.state_dict().items():
        assert torch.equal(tensor, resumed.method.state_dict()[name]), name


def test_monitor_reads_what_the_trainer_saves(name, small, tmp_path):
    """A run's last file gives the tokens of the network that lives on, and says where it is from."""
    recipe = small(name, epochs=1)
    settings = Settings(data="scenes", out=tmp_path, scenes=16, device="cpu", workers=0)
    trainer = Trainer(name, load(name), recipe, settings, torch.device("cpu"))
    trainer.run()
    trainer.report.close()
    network = trainer.method.get_submodule(trainer.method.evaluated.removesuffix(".")).eval()
    encoder = load_encoder(tmp_path / "checkpoint_0001.pth")
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in images(4)])
    with torch.no_grad():
        scaled = [(pixels / 255).permute(0, 3, 1, 2)]
        how = encoder.preprocessing
        (normal,) = normalise(Views(scaled), how.mean, how.std).images
        live = backbones.features(network, normal).dense
    torch.testing.assert_close(encoder.encode(pixels), live, rtol=1e-4, atol=1e-5)
    assert (encoder.epoch, encoder.step, encoder.source.layout) == (1, 2, "dse-train")
    assert encoder.image_size == (recipe.image_size, recipe.image_size)


def test_views_depend_on_the_seed_alone(method):
    view, (image,) = method.views(), images(1)
    drawn = []
    for epoch in (0, 0, 1):
        with seeded(5, epoch, 3):
            drawn.append(view(image).images)
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[2], strict=True))


def test_evaluated_encoder_is_the_described_timm_model(method):
    prefix = method.evaluated
    encoder = {k[len(prefix) :]: v for k, v in method.state_dict().items() if k.startswith(prefix)}
    backbones.build(method.backbone_spec).load_state_dict(encoder)  # strict: the same names and shapes
