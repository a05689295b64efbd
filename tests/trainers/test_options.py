"""Options that change memory or speed and no number: checkpointing, channels-last, fused, deterministic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dse_monitor.trainers.blocks import optim
from dse_monitor.trainers.engine.trainer import Trainer
from dse_monitor.trainers.methods import load
from dse_monitor.trainers.settings import Settings

# one network of each kind, with a method that trains it; dropped paths must be the same ones when recomputed
FAMILIES = [
    ("dino", "vit_mini_patch8", {"drop_path": 0.3}),
    ("esvit", "swin_mini_patch4", {"drop_path": 0.3}),
    ("simsiam", "resnet_mini", {}),
    ("dino", "convnext_mini", {"drop_path": 0.3}),
]


def stepped(name, recipe, out, *, count=None, **changes) -> Trainer:
    """A trainer after its first step, the same for each call; ``count`` hears of forward passes of layers."""
    values = {"data": "scenes", "scenes": 16, "device": "cpu", "workers": 0, **changes}
    one = Trainer(name, load(name), recipe, Settings(out=out, **values), torch.device("cpu"))
    one.report.close()
    if count is not None:
        for layer in one.method.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.requires_grad:
                layer.register_forward_hook(lambda *_: count.append(1))
    torch.manual_seed(3)
    one.measured = one._optimise(iter(one.loader), one._progress())
    return one


def assert_same(one: Trainer, other: Trainer, rtol: float = 1e-5) -> None:
    """Loss, gradients, and all that a step leaves behind."""
    torch.testing.assert_close(other.measured["loss"], one.measured["loss"])
    gradients = {n: p.grad for n, p in one.method.named_parameters() if p.grad is not None}
    others = {n: p.grad for n, p in other.method.named_parameters() if p.grad is not None}
    assert gradients.keys() == others.keys()
    size = torch.stack([g.norm() for g in gradients.values()]).norm()
    for key, value in gradients.items():
        assert (others[key] - value).norm() <= rtol * (value.norm() + 0.1 * size), key
    for key, value in dict(one.method.named_buffers()).items():
        torch.testing.assert_close(other.method.get_buffer(key), value, msg=key)


@pytest.mark.parametrize(("name", "backbone", "changes"), FAMILIES, ids=lambda value: str(value))
def test_recomputed_activations_change_nothing(name, backbone, changes, small, tmp_path):
    recipe, kept, recomputed = small(name, backbone=backbone, **changes), [], []
    plain = stepped(name, recipe, tmp_path / "plain", count=kept)
    again = stepped(name, recipe, tmp_path / "again", count=recomputed, checkpointing=True)
    assert len(recomputed) > 1.2 * len(kept)  # it did recompute
    assert_same(plain, again)


@pytest.mark.parametrize("backbone", ["resnet_mini", "convnext_mini"])
def test_channels_last_changes_the_layout_and_no_number(backbone, small, tmp_path):
    recipe = small("dino", backbone=backbone)
    plain = stepped("dino", recipe, tmp_path / "plain", channels_last=False)
    last = stepped("dino", recipe, tmp_path / "last")
    images = [next(iter(one.loader)) for one in (plain, last)]
    formats = [
        one._received(batch).images[0].is_contiguous(memory_format=torch.channels_last)
        for one, batch in zip((plain, last), images, strict=True)
    ]
    assert formats == [False, True]
    kernels = [m.weight for m in last.method.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert_same(plain, last, rtol=1e-2)  # other kernels round elsewhere, and batch norms magnify that


@pytest.mark.parametrize("name", ["dino", "densecl"])  # AdamW and SGD
def test_fused_optimiser_takes_the_same_steps(name, small, tmp_path):
    recipe = small(name)
    trained = stepped(name, recipe, tmp_path)
    assert all(group["fused"] for group in trained.optimizer.param_groups)
    before = {n: p.detach().clone() for n, p in trained.method.named_parameters() if p.requires_grad}
    plain = optim.build(recipe, trained.groups)
    assert not any(group["fused"] for group in plain.param_groups)
    after = []
    for optimizer in (trained.optimizer, plain):
        optimizer.state.clear()
        for parameter in before:
            trained.method.get_parameter(parameter).data.copy_(before[parameter])
        for group in optimizer.param_groups:
            group.update(lr=0.01, weight_decay=0.1)
        optimizer.step()
        optimizer.step()
        after.append({n: trained.method.get_parameter(n).detach().clone() for n in before})
    assert any(not torch.equal(after[0][n], before[n]) for n in before)
    for key in before:
        torch.testing.assert_close(after[0][key], after[1][key], rtol=1e-5, atol=1e-7, msg=key)


@pytest.fixture
def put_back():
    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic_run_asks_torch_for_it_and_repeats_bit_for_bit(
    put_back, small, run, difference, tmp_path
):
    from dse_monitor.trainers.engine import saving

    assert not torch.are_deterministic_algorithms_enabled()
    for name in ("a", "b"):
        run("esvit", small("esvit", epochs=1, drop_path=0.3), tmp_path / name, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    first, second = (saving.read(tmp_path / name / "checkpoint_0001.pth") for name in ("a", "b"))
    assert difference(first, second) == ""


def test_teacher_lies_where_the_student_lies_and_costs_no_graph(small, tmp_path):
    one = stepped("dino", small("dino"), tmp_path)
    devices = {p.device for p in one.method.parameters()}
    assert devices == {one.device}
    assert all(p.grad is None and p.grad_fn is None for p in one.method.teacher.parameters())
    one.method.to("meta")  # an average that went through the processor could not be taken here
    one.method.after_step(one._progress())
