"""A network of the user's own: its tokens, its place in the file, and what is refused in one line."""

import inspect
import pickle
import re
import shutil
import signal
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dse_monitor
from dse_monitor.checkpoints import load_encoder
from dse_monitor.checkpoints.inspect import inspect_checkpoint
from dse_monitor.checkpoints.network_code import locate, running
from dse_monitor.checkpoints.options import ReadingOptions
from dse_monitor.checkpoints.recognition import own_module
from dse_monitor.errors import (
    AmbiguousArchitecture,
    FeatureError,
    ImagesError,
    NetworkError,
    PluginError,
    UnknownLayout,
    UnsafeCheckpoint,
)
from dse_monitor.facts import reading
from dse_monitor.plugins import Registry

ROOT = Path(__file__).parents[2]
NET = """
import torch
from torch import nn
from dse_monitor import OwnNetwork

class MyNet(nn.Module):
    def __init__(self, depth=2, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, 8)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.norm = nn.BatchNorm1d(width)
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward_features(self, images):
        patches = self.stem(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(images), -1, -1), patches], 1)
        for block in self.blocks:
            tokens = tokens + block(tokens).relu()
        return self.norm(tokens.transpose(1, 2)).transpose(1, 2) * self.scale

def build():
    net = MyNet()
    return OwnNetwork(module=net, tokens=lambda net, x: net.forward_features(x)[:, 1:], image_size=32)
"""


@pytest.fixture(autouse=True)
def _forget(monkeypatch, tmp_path):
    """What a test loaded is not remembered by the process."""
    monkeypatch.setattr(running, "_LOADED", {})
    monkeypatch.setattr(own_module, "_OUTPUTS", {})
    monkeypatch.setattr(own_module, "_GIVEN_OUT", [])
    monkeypatch.setattr(own_module, "_REPEATED", set())
    old = locate.REGISTRY
    registry = Registry(old.group, old.what, old.table, old._check)
    for place in (locate, running):
        monkeypatch.setattr(place, "REGISTRY", registry)
    yield
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def code(tmp_path):
    """Writes the user's file; returns how it is named. Lines are added to NET."""

    def write(text="", function="build", base=NET, name="my_net.py"):
        path = tmp_path / name
        path.write_text(base + textwrap.dedent(text))
        return f"{path}:{function}"

    return write


def my_net(seed=0, **sizes):
    """The network of NET with random weights, in evaluation mode."""
    space = {}
    exec(NET, space)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = space["MyNet"](**sizes)
        net.norm.running_mean += torch.rand(8)
    return net.eval()


def under(prefix, net):
    return {prefix + name: tensor for name, tensor in net.state_dict().items()}


IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


def equal(encoder, net):
    with torch.inference_mode():
        wanted = net.forward_features(IMAGES)[:, 1:]
    torch.testing.assert_close(encoder.dense_tokens(IMAGES), wanted, rtol=0, atol=1e-6)
    return True


# What works -----------------------------------------------------------------------------------------------


def test_tokens_are_those_of_the_users_module(saved, code):
    net = my_net()
    path = saved({"state_dict": under("module.enc._orig_mod.", net), "epoch": 7}, "a.pth")
    encoder = load_encoder(path, network=code())
    assert equal(encoder, net)
    assert (encoder.epoch, encoder.grid, encoder.width, encoder.preprocessing.channels) == (7, (4, 4), 8, 3)
    assert encoder.arch == "MyNet of my_net.py:build"
    assert encoder.source.layout == "plain"


def test_lightning_and_steps_are_recognised_as_ever(saved, code):
    content = {
        "state_dict": under("net.", my_net()),
        "pytorch-lightning_version": "2",
        "epoch": 4,
        "global_step": 50,
    }
    encoder = load_encoder(saved(content, "epoch=4.ckpt"), network=code())
    assert (encoder.source.layout, encoder.epoch, encoder.step) == ("lightning", 5, 50)


def test_safetensors_of_half_precision_become_float32(tmp_path, code):
    from safetensors.torch import save_file

    net = my_net().half()
    save_file(under("", net), tmp_path / "model.safetensors")
    encoder = load_encoder(tmp_path / "model.safetensors", network=code())
    assert {tensor.dtype for tensor in encoder.module.state_dict().values()} == {torch.float32, torch.int64}
    assert equal(encoder, net.float())


@pytest.mark.parametrize(
    ("body", "grid"),
    [
        ("return nn.Sequential(nn.Conv2d(3, 8, 8, 8))", (28, 28)),
        ("return OwnNetwork(module=nn.Sequential(nn.Conv2d(3, 8, 8, 8)), image_size=(32, 64))", (4, 8)),
        ("""
    class Net(nn.Sequential):
        def forward_features(self, x): return self(x).flatten(2).transpose(1, 2)
    return OwnNetwork(module=Net(nn.Conv2d(3, 8, 8, 8)), grid=(2, 8), image_size=32)
""", (2, 8)),
    ],
)  # fmt: skip
def test_a_module_alone_is_enough_for_maps_and_squares(saved, code, body, grid):
    path = saved({"0." + name: tensor for name, tensor in nn.Conv2d(3, 8, 8, 8).state_dict().items()})
    encoder = load_encoder(path, network=code(f"def short():\n    {body.lstrip()}", "short"))
    assert encoder.grid == grid
    size = encoder.image_size
    assert encoder.dense_tokens(torch.zeros(1, 3, *size)).shape == (1, grid[0] * grid[1], 8)


def test_the_example_of_the_documentation_is_right(saved, code):
    text = (ROOT / "docs" / "own_networks.md").read_text()
    [example] = re.findall(r"```python\n(def build.*?)```", text, re.DOTALL)
    assert textwrap.indent(example, "    ") in inspect.cleandoc(dse_monitor.OwnNetwork.__doc__) + "\n"
    lines = example.replace("(depth=4)", "(depth=4, width=8)").replace("[:, 1:])", "[:, 1:], image_size=32)")
    net = my_net(depth=4)
    assert equal(load_encoder(saved(under("", net)), network=code(lines)), net)


def test_a_module_is_found_by_its_name(saved, code, tmp_path, monkeypatch):
    code(name="my_nets_for_a_test.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    encoder = load_encoder(saved(under("", my_net())), network="my_nets_for_a_test:build")
    assert equal(encoder, my_net())
    assert encoder.facts[0].source == "--network, of my_nets_for_a_test.py"


def test_a_plugin_is_found_by_its_name(saved, packages):
    packages.add("lab", "[dse_monitor.networks]\nlabnet = lab_net:build\n", version="2.1", lab_net=NET)
    encoder = load_encoder(saved(under("", my_net())), network="labnet")
    assert equal(encoder, my_net())
    assert encoder.arch == "MyNet of labnet of lab 2.1"


def test_a_faulty_plugin_names_its_package(saved, packages):
    packages.add(
        "lab", "[dse_monitor.networks]\nlabnet = lab_nix:build\n", lab_nix="import not_to_be_found\n"
    )
    with pytest.raises(PluginError, match=r"'labnet' of lab 1\.0 .* No module named 'not_to_be_found'"):
        load_encoder(saved(under("", my_net())), network="labnet")


def test_relative_paths_hold_in_another_folder(code, tmp_path, monkeypatch):
    code()
    monkeypatch.chdir(tmp_path)
    options = ReadingOptions(network="my_net.py:build")
    assert options.network == f"{tmp_path}/my_net.py:build"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ReadingOptions(network="~/my_net.py:build") == options


def test_imports_of_the_same_folder_are_found_and_leave_no_trace(saved, code, tmp_path):
    (tmp_path / "blocks_of_a_test.py").write_text("from torch import nn\nWIDTH = 8\n")
    (tmp_path / "parts_of_a_test").mkdir()
    (tmp_path / "parts_of_a_test" / "__init__.py").write_text("from .sizes import SIZE\n")
    (tmp_path / "parts_of_a_test" / "sizes.py").write_text("SIZE = 32\n")
    (tmp_path / "token.py").write_text("raise RuntimeError('not the standard library')\n")
    path = list(sys.path)
    network = code(
        """
        from blocks_of_a_test import WIDTH

        def wide():
            import token
            from parts_of_a_test import SIZE
            return OwnNetwork(module=MyNet(width=WIDTH), tokens=take, image_size=SIZE)

        def take(net, images):
            return net.forward_features(images)[:, 1:]
        """,
        "wide",
    )
    encoder = load_encoder(saved(under("", my_net())), network=network)
    assert encoder.facts[0].source == (
        "--network, of blocks_of_a_test.py and my_net.py and parts_of_a_test/__init__.py and "
        "parts_of_a_test/sizes.py"
    )
    assert sys.path == path
    assert not any(type(finder).__module__ == running.__name__ for finder in sys.meta_path)


def test_what_the_code_prints_does_not_get_into_the_output(saved, code, capfd):
    network = code("import os\nos.write(1, b'one')\nprint('two')\n")
    load_encoder(saved(under("", my_net())), network=network)
    said = capfd.readouterr()
    assert said.out == ""
    assert "one" in said.err


def test_layers_are_asked_for_by_number(saved, code):
    network = code(
        """
        def layered():
            def tokens(net, images, layer):
                return net.forward_features(images)[:, 1:] * (layer or 3)
            return OwnNetwork(module=MyNet(), tokens=tokens, image_size=32, layers=3)
        """,
        "layered",
    )
    path = saved(under("", my_net()))
    last, first = (load_encoder(path, network=network, layer=layer) for layer in ("last", 1))
    torch.testing.assert_close(last.dense_tokens(IMAGES), 3 * first.dense_tokens(IMAGES))
    with pytest.raises(FeatureError, match="layers 1 to 3"):
        load_encoder(path, network=network, layer=4)


def test_preprocessing_is_the_options_then_the_functions_then_the_usual(saved, code):
    network = code(
        """
        def prepared():
            return OwnNetwork(module=MyNet(), tokens=lambda n, x: n.forward_features(x)[:, 1:], image_size=32,
                              mean=0.5, std=(0.1, 0.2, 0.3), any_size=True)
        """,
        "prepared",
    )
    path = saved(under("", my_net()))
    how = load_encoder(path, network=network).preprocessing
    assert (how.mean, how.std, how.interpolation) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3), "bicubic")
    asked = load_encoder(path, network=network, mean=(0.2,), interpolation="bilinear", image_size=64)
    how = asked.preprocessing
    assert (how.mean, how.std, how.interpolation) == ((0.2, 0.2, 0.2), (0.1, 0.2, 0.3), "bilinear")
    assert (asked.image_size, asked.grid) == ((64, 64), (8, 8))
    facts = {fact.name: fact for fact in asked.facts}
    assert facts["std"].source == "std of my_net.py:prepared"
    assert not facts["std"].assumed


def test_a_transform_is_handed_on(saved, code, tmp_path):
    network = code(
        """
        import numpy as np

        def banded():
            net = MyNet()
            net.stem = nn.Conv2d(5, 8, 8, 8)
            def read(path):
                return np.load(path).astype("float32") / 1000
            return OwnNetwork(module=net, tokens=lambda n, x: n.forward_features(x)[:, 1:], image_size=32,
                              transform=read, suffixes=(".npy",))
        """,
        "banded",
    )
    net = my_net()
    net.stem = nn.Conv2d(5, 8, 8, 8)
    path = saved(under("", net))
    encoder = load_encoder(path, network=network)
    np.save(tmp_path / "a.npy", np.full((5, 32, 32), 500, np.uint16))
    assert encoder.transform(tmp_path / "a.npy").max() == 0.5
    assert (encoder.transform.suffixes, encoder.preprocessing.channels) == ((".npy",), 5)
    assert len(encoder.transform_id) == 16
    with pytest.raises(NetworkError, match=r"--mean has no meaning: the transform of my_net\.py"):
        load_encoder(path, network=network, mean=(0.5,))


def test_labels_are_refused_beside_a_transform(saved, code, tmp_path):
    from dse_monitor.probe.prober import probe

    network = code(
        """
        def banded():
            return OwnNetwork(module=MyNet(), tokens=lambda n, x: n.forward_features(x)[:, 1:], image_size=32,
                              transform=lambda path: torch.zeros(3, 32, 32))
        """,
        "banded",
    )
    with pytest.raises((FeatureError, ImagesError), match="masks cannot be cropped as the transform"):
        probe(saved(under("", my_net())), tmp_path, tmp_path, network=network, device="cpu")


# Where it is in the file ----------------------------------------------------------------------------------


def test_a_teacher_comes_first_and_another_place_can_be_named(saved, code):
    student, teacher = my_net(1), my_net(2)
    path = saved({"student": under("enc.", student), "teacher": under("enc.", teacher)})
    network = code()
    assert equal(load_encoder(path, network=network), teacher)
    for place in ("student", "student/enc."):
        assert equal(load_encoder(path, network=network, encoder=place), student)


def test_several_places_without_an_order_are_ambiguous(saved, code):
    path = saved({**under("left.", my_net(1)), **under("right.", my_net(2))})
    network = code()
    with pytest.raises(AmbiguousArchitecture, match=r"'/left\.', '/right\.'.*--encoder PLACE"):
        load_encoder(path, network=network)
    assert equal(load_encoder(path, network=network, encoder="right"), my_net(2))


@pytest.mark.parametrize(("prefix", "seed"), [("left.", 1), ("right", 2), ("model/right.", 2)])
def test_the_function_can_say_where(saved, code, prefix, seed):
    path = saved({"model": {**under("left.", my_net(1)), **under("right.", my_net(2))}})
    network = code(
        f"""
        def there():
            return OwnNetwork(module=MyNet(), tokens=lambda n, x: n.forward_features(x)[:, 1:], image_size=32,
                              prefix={prefix!r})
        """,
        "there",
    )
    assert equal(load_encoder(path, network=network), my_net(seed))


def spoilt(change):
    state = under("enc.", my_net())
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s.pop("enc.blocks.1.bias"), r"1 of its 11 tensors missing \(blocks\.1\.bias\)"),
        (lambda s: s.pop("enc.norm.running_var"), r"missing \(norm\.running_var\)"),
        (
            lambda s: s.update({"enc.cls": torch.zeros(1, 1, 9)}),
            r"1 tensors have other shapes, such as cls: \[1, 1, 9\] instead of \[1, 1, 8\]",
        ),
        (
            lambda s: s.update({"enc.blocks.2.weight": torch.zeros(8, 8)}),
            r"1 tensors have no place in it \(blocks\.2\.weight\).*ignore=\('blocks\.', \.\.\.\)",
        ),
        (lambda s: s.update({"enc.gate": torch.zeros(8)}), r"1 tensors have no place in it \(gate\)"),
        (lambda s: s.clear() or s.update(x=torch.zeros(2)), r"none of its tensors, first 'cls'"),
    ],
)
def test_tensors_match_strictly(saved, code, change, match):
    with pytest.raises(UnknownLayout, match=match):
        load_encoder(saved(spoilt(change)), network=code())


def test_heads_may_be_left_over_and_buffers_computed(saved, code):
    def change(state):
        state["enc.head.weight"] = torch.zeros(3)
        state["other.weight"] = torch.zeros(3)
        del state["enc.scale"], state["enc.norm.num_batches_tracked"]

    path = saved(spoilt(change))
    encoder = load_encoder(path, network=code())
    assert equal(encoder, my_net())
    fact = next(fact for fact in encoder.facts if fact.name == "buffers")
    assert fact.assumed
    assert "2 as the module makes them: scale, norm.num_batches_tracked" in fact.value


def test_weight_norm_is_read_as_it_is_stored_or_computed(saved, code):
    """By a module that keeps its weights so itself, and by one that does not."""
    net = my_net()
    for block in net.blocks:
        nn.utils.parametrizations.weight_norm(block)
    path = saved(under("enc.", net))
    normed = """
        def normed():
            net = MyNet()
            for block in net.blocks:
                nn.utils.parametrizations.weight_norm(block)
            return OwnNetwork(module=net, tokens=lambda n, x: n.forward_features(x)[:, 1:], image_size=32)
        """
    for function in ("normed", "build"):
        assert equal(load_encoder(path, network=code(normed, function)), net)


def test_what_changes_no_token_can_be_named(saved, code):
    path = saved(spoilt(lambda s: s.update({"enc.gate": torch.zeros(8)})))
    network = code(
        """
        def lenient():
            return OwnNetwork(module=MyNet(), tokens=lambda n, x: n.forward_features(x)[:, 1:], image_size=32,
                              ignore=("gate",))
        """,
        "lenient",
    )
    assert equal(load_encoder(path, network=network), my_net())
    assert inspect_checkpoint(path, network=network).unused == ("enc.gate",)


# What goes wrong in the user's code -----------------------------------------------------------------------

FAULTS = {
    "raises": ("def f():\n    return {}['depth']", r"my_net\.py:\d+ in f: KeyError: 'depth'"),
    "exits": ("def f():\n    raise SystemExit('enough')", r"my_net\.py:\d+ in f: SystemExit: enough"),
    "nothing": ("def f():\n    MyNet()", "returned nothing, expected a torch module or an OwnNetwork"),
    "text": ("def f():\n    return 'net'", "returned a str, expected a torch module"),
    "package": ("import not_to_be_found\ndef f(): pass", r"my_net\.py:\d+: ModuleNotFoundError: .*install"),
    "same": ("net = MyNet()\ndef f():\n    return OwnNetwork(module=net, image_size=32)", "the same module"),
    "instance": ("f = MyNet()", "f is a MyNet, expected a function that builds the network"),
    "class token": (
        "def f():\n    return OwnNetwork(module=MyNet(), image_size=32)",
        r"17 tokens \(4 x 4 and 1 more, a class token perhaps\), which are no square: return OwnNetwork",
    ),
    "batch": (
        "def f():\n    return OwnNetwork(module=MyNet(), image_size=32, "
        "tokens=lambda n, x: n.forward_features(x)[:1, 1:])",
        r"returned \[1, 16, 8\] for 2 images",
    ),
    "dictionary": (
        "def f():\n    return OwnNetwork(module=MyNet(), image_size=32, tokens=lambda n, x: {'a': x})",
        "returned a dict, not a tensor: return OwnNetwork",
    ),
    "grid": (
        "def f():\n    return OwnNetwork(module=MyNet(), image_size=32, grid=(3, 5), "
        "tokens=lambda n, x: n.forward_features(x)[:, 1:])",
        "16 tokens, which are no grid of 3 x 5",
    ),
    "forward": (
        "def f():\n    return OwnNetwork(module=MyNet(), tokens=lambda n, x: x.nothing)",
        r"in <lambda>: AttributeError: .*It was given images \[2, 3, 224, 224\] \(its first convolution, 224",
    ),
    "field": (
        "def f():\n    return OwnNetwork(module=MyNet(), grid=14)",
        r"in f: ValueError: grid is 14, expected \(rows, columns\)",
    ),
    "channels": ("def f():\n    return nn.Linear(3, 3)", "no convolution that shows how many channels"),
    "unreal": ("def f():\n    return nn.ReLU()", "the module has no tensors"),
    "training": (
        "class Stuck(MyNet):\n    def train(self, mode=True):\n        return super().train(True)\n"
        "def f():\n    return Stuck()",
        "does not put every part into evaluation mode",
    ),
    "silent train": (
        "class Mute(MyNet):\n    def train(self, mode=True):\n        super().train(mode)\n"
        "def f():\n    return Mute()",
        "or does not return the module",
    ),
    "random": (
        "def f():\n    net = MyNet()\n    net.mix = torch.rand(8)\n"
        "    return OwnNetwork(module=net, image_size=32, "
        "tokens=lambda n, x: n.forward_features(x)[:, 1:] * n.mix)",
        "mix differs between two calls and is not in the checkpoint",
    ),
    "outside": (
        "def f():\n    head = nn.Linear(8, 8)\n    return OwnNetwork(module=MyNet(), image_size=32, "
        "tokens=lambda n, x: head(n.forward_features(x)[:, 1:]))",
        "runs a Linear that is no part of module",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_code_are_one_line(saved, code, fault):
    text, match = FAULTS[fault]
    empty = nn.Linear(3, 3) if fault == "channels" else my_net()
    with pytest.raises(NetworkError, match=match) as caught:
        load_encoder(saved(under("", empty)), network=code(text, "f"))
    assert "\n" not in str(caught.value)


def test_ctrl_c_is_left_alone_but_where_there_is_none(saved, code):
    """A worker ignores the signal, so that there the user's code must have raised it."""
    path, network = saved(under("", my_net())), code("def f():\n    raise KeyboardInterrupt", "f")
    with pytest.raises(KeyboardInterrupt):
        load_encoder(path, network=network)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(NetworkError, match=r"my_net\.py:\d+ in f: KeyboardInterrupt"):
            load_encoder(path, network=network)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("text", "network", "match"),
    [
        ("", "{}/nowhere.py:build", r"/nowhere\.py is no file that can be read"),
        ("", "{}:build", "is no file that can be read"),
        ("def build(\n", "{}/x.py:build", r"x\.py:1 is not Python: '\(' was never closed"),
        ("def one(): pass\nclass Two: pass\n", "{}/x.py:build", r"x\.py defines one, Two; there is no build"),
        ("def one(): pass\n", "{}/x.py", r"defines one; write x\.py:FUNCTION"),
        ("def build(depth, *, width): pass\n", "{}/x.py:build", "build in x.py needs depth, width"),
        ("async def build(): pass\n", "{}/x.py:build", "is async"),
        ("", "not_to_be_found_here:build", "there is no module 'not_to_be_found_here' here; install it"),
        ("", "json:building", "there is no building"),
        ("", "one two:build", "is not FILE.py:FUNCTION, MODULE:FUNCTION or the name of a plugin"),
        ("", "nobodys", r"no network 'nobodys' .*\(none is installed\); expected FILE\.py:FUNCTION"),
    ],
)
def test_mistakes_show_before_anything_is_run(tmp_path, packages, text, network, match):
    (tmp_path / "x.py").write_text(f"{text}\n")
    with pytest.raises(NetworkError, match=match) as caught:
        ReadingOptions(network=network.format(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("other", [{"arch": "vit_tiny"}, {"arch_option": ("a=1",)}, {"num_heads": 3}])
def test_options_that_exclude_each_other(code, other):
    with pytest.raises(ValueError, match="exclude each other"):
        ReadingOptions(network=code(), **other)


def test_images_of_another_size_need_a_network_that_takes_them(saved, code):
    with pytest.raises(NetworkError, match="is for images of 32 x 32 px: leave --image-size out"):
        load_encoder(saved(under("", my_net())), network=code(), image_size=64)


def test_an_error_on_some_images_names_the_line(saved, code):
    network = code(
        """
        def picky():
            def tokens(net, images):
                if images.device.type == "cpu" and images.max() > 0:
                    raise FileNotFoundError("table.csv")
                return net.forward_features(images)[:, 1:]
            return OwnNetwork(module=MyNet(), tokens=tokens, image_size=32)
        """,
        "picky",
    )
    encoder = load_encoder(saved(under("", my_net())), network=network)
    with pytest.raises(
        FeatureError, match=r"my_net\.py:\d+ in tokens: FileNotFoundError: table\.csv"
    ) as caught:
        encoder.dense_tokens(IMAGES)
    assert caught.value.__cause__ is None  # an OSError there means that the checkpoint is gone


def test_memory_that_lacks_is_left_to_the_encoder(saved, code):
    network = code(
        """
        def hungry():
            def tokens(net, images):
                if len(images) > 1 and images.device.type == "cpu":
                    raise torch.OutOfMemoryError("out of memory")
                return net.forward_features(images)[:, 1:]
            return OwnNetwork(module=MyNet(), tokens=tokens, image_size=32)
        """,
        "hungry",
    )
    encoder = load_encoder(saved(under("", my_net())), network=network)
    pixels = np.zeros((4, 32, 32, 3), np.uint8)
    assert encoder.encode(pixels).shape == (4, 16, 8)


# Which code it was ----------------------------------------------------------------------------------------


def test_another_version_is_another_reading(saved, code, tmp_path, monkeypatch):
    (tmp_path / "sizes_of_a_test.py").write_text("SIZE = 32\n")
    path = saved(under("", my_net()))
    found = []
    for text in ("", "# changed", ""):
        network = code(f"from sizes_of_a_test import SIZE\n{text}")
        monkeypatch.setattr(running, "_LOADED", {})  # a process each
        encoder = load_encoder(path, network=network)
        found.append(reading(encoder.arch, encoder.facts))
        assert re.fullmatch(r"my_net\.py:build, sha256 [0-9a-f]{12}", encoder.facts[0].value)
    assert found[0] == found[2] != found[1]
    (tmp_path / "sizes_of_a_test.py").write_text("SIZE = 64\n")
    monkeypatch.setattr(running, "_LOADED", {})
    assert reading("", load_encoder(path, network=network).facts) != reading("", encoder.facts)


def test_a_process_keeps_the_code_it_loaded_and_says_so(saved, code, caplog):
    path = saved(under("", my_net()))
    before = load_encoder(path, network=code())
    after = load_encoder(path, network=code("# changed"))
    assert before.facts == after.facts
    assert "numbers of both are not compared" in caplog.text


def test_a_request_to_measure_differs_with_the_code(code, tmp_path):
    from dse_monitor.evaluation.config import EvaluationConfig

    first, second = (EvaluationConfig(images=tmp_path, network=code(text)) for text in ("", "# changed"))
    assert first.request != second.request
    assert EvaluationConfig.from_json(first.to_json()) == first


class _Attack:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_a_hostile_checkpoint_is_not_executed_for_a_network_of_ones_own(tmp_path, code):
    marker, path = tmp_path / "executed", tmp_path / "hostile.pth"
    torch.save({"model": under("", my_net()), "extra": _Attack(marker)}, path, pickle_module=pickle)
    try:
        load_encoder(path, network=code())
    except UnsafeCheckpoint:
        pass  # refused as a whole, or read without that object
    assert not marker.exists()


def test_a_file_beside_the_checkpoint_is_not_run_unasked(saved, tmp_path):
    marker = tmp_path / "executed"
    folder = saved(under("", my_net()), "model/pytorch_model.bin").parent
    (folder / "modeling.py").write_text(f"open({str(marker)!r}, 'w')\n")
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "modeling.MyNet"}}')
    shutil.copy(folder / "modeling.py", folder / "network.py")
    with pytest.raises(UnknownLayout, match=r"give your own network with --network FILE\.py:FUNCTION"):
        load_encoder(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("tokens", "problem"),
    [
        ("nn.functional.dropout(patches(net, x), 0.1, True)", "other tokens each time"),
        ("patches(net, x) + 0.5 * torch.rand(8)", "other tokens each time"),
        ("patches(net, x) - patches(net, x).mean(0, keepdim=True)", "depend on the others of the batch"),
    ],
)
def test_tokens_that_are_random_or_of_the_whole_batch_are_refused(saved, code, tokens, problem):
    text = f"""
        def patches(net, x):
            return net.forward_features(x)[:, 1:]

        def odd():
            return OwnNetwork(module=MyNet(), tokens=lambda net, x: {tokens}, image_size=32)
    """
    encoder = load_encoder(saved(my_net().state_dict()), network=code(text, "odd"))
    with pytest.raises(NetworkError, match=rf"my_net.py:odd gives .*{problem}"):
        encoder.dense_tokens(IMAGES)
