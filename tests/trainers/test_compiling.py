"""--compile: the same step, the same names in what is saved, and runs that resume with and without it."""

from __future__ import annotations

import pytest
import torch
from timm.layers.drop import DropPath
from torch import nn

from dse_monitor.trainers import backbones
from dse_monitor.trainers.engine import compiling, saving
from dse_monitor.trainers.engine.trainer import Trainer
from dse_monitor.trainers.methods import load
from dse_monitor.trainers.settings import Settings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # a C++ compiler runs
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),  # torch's own tracer
]
# A transformer and a convolutional network with the fewest graphs to compile, and the hierarchical one, whose
# crops have two sizes.
METHODS = ("mae", "simsiam", "esvit")


@pytest.fixture(autouse=True)
def compiler(tmp_path_factory, monkeypatch):
    """Compiled code goes to a folder of the tests, and nothing compiled is left to others."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "inductor"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def stepped(name, recipe, out, **changes) -> Trainer:
    """A trainer after its first step, the same for each call."""
    values = {"data": "scenes", "scenes": 16, "device": "cpu", "workers": 0, **changes}
    one = Trainer(name, load(name), recipe, Settings(out=out, **values), torch.device("cpu"))
    one.report.close()
    torch.manual_seed(3)
    one.measured = one._optimise(iter(one.loader), one._progress())
    return one


@pytest.mark.parametrize("name", METHODS)
def test_compiled_step_has_the_loss_and_gradient_of_the_plain_one(name, small, tmp_path):
    recipe = small(name)
    plain = stepped(name, recipe, tmp_path / "plain")
    counted = torch._dynamo.utils.counters
    counted.clear()
    compiled = stepped(name, recipe, tmp_path / "compiled", compile=True)
    assert counted["inductor"], "nothing was compiled"
    assert not counted["frames"]["total"] - counted["frames"]["ok"], "some was left uncompiled"
    torch.testing.assert_close(compiled.measured["loss"], plain.measured["loss"])
    assert compiled.method.state_dict().keys() == plain.method.state_dict().keys()
    gradients = {n: p.grad for n, p in plain.method.named_parameters() if p.grad is not None}
    other = dict(compiled.method.named_parameters())
    size = torch.stack([g.norm() for g in gradients.values()]).norm()
    for key, value in gradients.items():
        # fused kernels round elsewhere
        assert (other[key].grad - value).norm() <= 1e-3 * value.norm() + 1e-5 * size, key
    for key, value in plain.method.state_dict().items():
        if key.endswith("running_mean"):
            torch.testing.assert_close(compiled.method.state_dict()[key], value, msg=key)


def test_compiled_run_is_saved_under_the_same_names_and_resumes(small, run, difference, tmp_path):
    recipe = small("mae")
    run("mae", recipe, tmp_path / "plain", max_steps=3)
    run("mae", recipe, tmp_path / "whole", compile=True)
    run("mae", recipe, tmp_path / "parts", compile=True, max_steps=3)
    plain, parts = (saving.newest(tmp_path / name)[1] for name in ("plain", "parts"))
    assert plain["model"].keys() == parts["model"].keys()
    run("mae", recipe, tmp_path / "parts", compile=True, resume=True)
    whole, parts = (saving.read(tmp_path / name / "checkpoint_0002.pth") for name in ("whole", "parts"))
    assert difference(whole, parts) == ""
    run("mae", recipe, tmp_path / "plain", compile=True, resume=True)  # begun without, ended with it
    assert saving.newest(tmp_path / "plain")[1]["step"] == 4


@pytest.fixture
def traced(monkeypatch):
    """Blocks are traced as ever, but run as traced: no C++ compiler. Returns what torch counts."""
    compile_module = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **how: compile_module(self, backend="eager", **how)
    )
    counted = torch._dynamo.utils.counters
    counted.clear()
    return counted


def test_blocks_that_differ_in_their_drop_path_alone_share_a_graph(traced):
    network = backbones.build(backbones.describe("vit_mini_patch8", 32, depth=6), drop_path_rate=0.3)
    compiling.compile_blocks(network)
    assert not any(isinstance(module, DropPath) for module in network.modules())
    backbones.features(network, torch.zeros(2, 3, 32, 32)).dense.sum().backward()
    assert traced["stats"]["unique_graphs"] == 2  # the first block drops nothing
    assert (
        network.state_dict().keys()
        == backbones.build(backbones.describe("vit_mini_patch8", 32, depth=6)).state_dict().keys()
    )


def test_more_kinds_of_blocks_than_torch_compiles_by_default_are_compiled(traced):
    spec = backbones.describe("swin_mini_patch4", 64, depths=[2, 2, 2])
    network = backbones.build(spec, drop_path_rate=0.1)
    compiling.compile_blocks(network)
    for side in (64, 32, 48):
        network.train(side != 48)
        backbones.features(network, torch.zeros(2, 3, side, side))
    assert traced["stats"]["unique_graphs"] > 8
    assert traced["frames"]["total"] == traced["frames"]["ok"]


@pytest.mark.parametrize("scale", [True, False])
def test_drop_path_of_compiled_blocks_is_timms(scale):
    original = DropPath(0.25, scale_by_keep=scale)
    own, branch = compiling._DropPath(original), torch.ones(40_000, 1, 1)
    dropped = own(branch)
    torch.testing.assert_close(dropped.unique(), original(branch).unique())
    assert dropped.ne(0).float().mean().item() == pytest.approx(0.75, abs=0.01)
    assert own.eval()(branch) is branch
    assert not own.state_dict()


@pytest.mark.parametrize(
    ("name", "checkpointing", "least"), [("resnet_mini", True, 4), ("hrnet_w18_small", False, 1)]
)
def test_every_kind_of_convolutional_network_is_compiled(name, checkpointing, least, traced):
    network = backbones.build(backbones.describe(name, 64))
    if checkpointing:
        backbones.checkpoint_activations(network)
    compiling.compile_blocks(network)
    backbones.features(network, torch.randn(2, 3, 64, 64)).dense.sum().backward()
    assert traced["stats"]["unique_graphs"] >= least
