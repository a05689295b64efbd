"""A layout or a network family is one file and one line, in the tree or in a package of its own."""

import logging
import shutil
import sys
from pathlib import Path

import pytest
import timm
import torch

from dse_monitor.checkpoints import families, layouts, load_encoder
from dse_monitor.checkpoints.families.network import Hints, NotThisNetwork
from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.recognition.dialects import DIALECTS
from dse_monitor.errors import AmbiguousArchitecture, PluginError, UnknownLayout
from dse_monitor.plugins import Registry

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin" / "dse_monitor_example"


HEADS = {"num_heads": 3}  # of the transformer below, which its tensors do not show


@pytest.fixture(autouse=True)
def _own_registries(monkeypatch):
    """What a test installs is not remembered by the process."""
    for place in (layouts, families):
        old = place.REGISTRY
        monkeypatch.setattr(place, "REGISTRY", Registry(old.group, old.what, old.table, place.check))


@pytest.fixture
def in_the_tree(tmp_path, monkeypatch):
    """Puts a file of the example beside the built-in ones; its line goes to the front of the table."""

    def add(place, stem, name, attribute):
        shutil.copy(EXAMPLE / f"{stem}.py", tmp_path)
        monkeypatch.setattr(place, "__path__", [*place.__path__, str(tmp_path)])
        line = {name: f"{place.__name__}.{stem}:{attribute}"}
        monkeypatch.setattr(place.REGISTRY, "table", {**line, **place.REGISTRY.table})
        monkeypatch.setitem(sys.modules, f"{place.__name__}.{stem}", None)
        del sys.modules[f"{place.__name__}.{stem}"]

    return add


@pytest.fixture
def vit():
    torch.manual_seed(0)
    kwargs = {"img_size": 64, "patch_size": 8, "depth": 2, "num_classes": 0}
    return timm.create_model("vit_tiny_patch16_224", **kwargs).state_dict()


@pytest.fixture
def lab_file(saved, vit):
    online = {f"module.trunk.{name}": torch.zeros_like(value) for name, value in vit.items()}
    averaged = {f"trunk.{name}": value for name, value in vit.items()}
    content = {"lab_version": 1, "epoch": 9, "online": online, "averaged": averaged}
    return saved(content, "ckpt_0009.pt")


def mixer():
    sys.modules.pop("mixer", None)
    sys.path.insert(0, str(EXAMPLE))
    try:
        import mixer
    finally:
        sys.path.remove(str(EXAMPLE))
    torch.manual_seed(0)
    return mixer.Mixer(side=4, patch=8, width=24, depth=2, hidden=48, classes=5).eval()


# In the tree ------------------------------------------------------------------------------------------------


def test_layout_is_added_by_its_file_and_one_line(in_the_tree, lab_file):
    with pytest.raises(AmbiguousArchitecture, match="several networks could be meant"):
        load_encoder(lab_file)
    in_the_tree(layouts, "lab", "example-lab", "LAYOUT")
    encoder = load_encoder(lab_file, **HEADS)
    assert (encoder.source.layout, encoder.source.encoder, encoder.epoch) == ("example-lab", "averaged", 10)
    assert layouts.table()[0]["name"] == "example-lab"


def test_family_is_added_by_its_file_and_one_line(in_the_tree, saved):
    network = mixer()
    path = saved({"model": network.state_dict(), "epoch": 3})
    with pytest.raises(UnknownLayout):
        load_encoder(path)
    in_the_tree(families, "mixer", "example-mixer", "FAMILY")
    encoder = load_encoder(path)
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    mean, std = (torch.tensor(getattr(encoder.preprocessing, part)) for part in ("mean", "std"))
    with torch.no_grad():
        expected = network.tokens(((pixels / 255 - mean) / std).permute(0, 3, 1, 2))
    torch.testing.assert_close(encoder.encode(pixels), expected, rtol=1e-4, atol=1e-5)  # float32 sums
    assert encoder.arch == "example mixer 24x2, patch 8"


@pytest.mark.parametrize("name", layouts.REGISTRY.names())
def test_every_layout_keeps_the_contract_of_plugins(name):
    """All but those that say less of a file than its encoder does: they are tried last."""
    layout = layouts.by_name(name)
    if layout.needs:
        layouts.check(name, layout)
    else:
        assert layout.dialects or name == "plain"


@pytest.mark.parametrize("name", families.REGISTRY.names())
def test_every_family_refuses_other_shapes_in_words(name):
    family = families.load(name)
    dialects = [each for each in (*DIALECTS, *family.dialects) if each.family == name]
    assert dialects
    for dialect in dialects:
        for shape in ((), (7,), (7, 7), (7, 3, 7, 8), (0, 3, 0, 0)):
            with pytest.raises((NotThisNetwork, AmbiguousArchitecture)):
                family.recognise({dialect.anchor: shape, dialect.needs: shape}, Hints())
    with pytest.raises(NotThisNetwork):
        family.recognise({}, Hints())


# Layouts of packages ----------------------------------------------------------------------------------------

LAYOUT = """
from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
LAYOUT = Layout(name="mine", title="mine", origin="", example="x.pt", evaluated="mine", **{fields})
"""


def install_layout(packages, **fields):
    networks = fields.pop("networks", '(NetworkAt("mine", "*"),)')
    body = ", ".join([f"{key!r}: {value!r}" for key, value in fields.items()] + [f'"networks": {networks}'])
    source = LAYOUT.replace("{fields}", "{" + body + "}")
    packages.add("mine", "[dse_monitor.layouts]\nmine = my_layout:LAYOUT\n", my_layout=source)


def test_layout_of_a_package_is_recognised_listed_and_taken_by_name(packages, lab_file):
    install_layout(packages, needs=("lab_version",), networks='(NetworkAt("mine", "averaged/*"),)')
    assert load_encoder(lab_file, **HEADS).source.layout == "mine"
    assert load_encoder(lab_file, layout="mine", encoder="mine", **HEADS).source.layout == "mine"
    assert [row["name"] for row in layouts.table()][-1] == "mine"
    with pytest.raises(UnknownLayout, match=r"no layout 'dyno'.*mine"):
        load_encoder(lab_file, layout="dyno")


def test_layout_of_a_package_takes_no_file_from_an_entry_that_knows_something_else(packages, saved, vit):
    teacher = {f"backbone.{name}": value for name, value in vit.items()}
    path = saved({"student": dict(teacher), "teacher": teacher, "dino_loss": {}, "epoch": 11, "extra": 1})
    install_layout(packages, needs=("extra",))
    assert load_encoder(path).source.layout == "dino"


def test_layout_that_needs_all_that_another_needs_and_more_comes_first(packages, saved, vit):
    content = {"state_dict": {f"net.{name}": v for name, v in vit.items()}, "pytorch-lightning_version": "2"}
    path = saved({**content, "extra": 1}, "a.ckpt")
    install_layout(packages, needs=("state_dict", "pytorch-lightning_version", "extra"))
    assert load_encoder(path, **HEADS).source.layout == "mine"
    assert load_encoder(saved(content, "b.ckpt"), **HEADS).source.layout == "lightning"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"needs": ()}, "needs is empty"),
        ({"needs": "model"}, "needs must be a tuple of str, found 'model'"),
        ({"needs": ("model",), "networks": "()"}, "at least one NetworkAt"),
        ({"needs": ("model",), "traps": ["x"]}, "traps must be a tuple of str"),
        ({"needs": ("model",), "evaluated_field": None}, "evaluated_field must be a str"),
    ],
)
def test_layout_that_breaks_the_contract_is_skipped_and_says_why(
    packages, saved, vit, caplog, fields, reason
):
    install_layout(packages, **fields)
    path = saved({"model": vit})
    with caplog.at_level(logging.WARNING):
        assert load_encoder(path, **HEADS).source.layout == "plain"
        assert load_encoder(path, **HEADS).source.layout == "plain"
    (line,) = (record.getMessage() for record in caplog.records)
    assert "checkpoint layout 'mine' of mine 1.0" in line
    assert reason in line
    with pytest.raises(PluginError, match="breaks the contract"):
        load_encoder(path, layout="mine")


def test_layout_must_be_called_as_its_entry_point():
    layout = Layout(name="a", title="", origin="", example="", needs=("x",), networks=(NetworkAt("n", "*"),))
    layouts.check("a", layout)
    with pytest.raises(ValueError, match="calls itself 'a'; it must be 'b'"):
        layouts.check("b", layout)
    with pytest.raises(TypeError, match="expected a Layout, found str"):
        layouts.check("a", "layout")


# Families of packages ---------------------------------------------------------------------------------------

FAMILY = """
from dse_monitor.checkpoints.families import Family
from dse_monitor.checkpoints.families.network import NotThisNetwork
from dse_monitor.checkpoints.recognition.dialects import Dialect

def recognise(shapes, hints):
    {body}

FAMILY = Family(recognise, (Dialect("my names", "{family}", "{anchor}", "{needs}"),))
"""


def install_family(packages, body="return None", family="mine", anchor="in.weight", needs="out.weight"):
    source = FAMILY.format(body=body, family=family, anchor=anchor, needs=needs)
    packages.add("mine", "[dse_monitor.families]\nmine = my_family:FAMILY\n", my_family=source)


@pytest.fixture
def my_file(saved):
    return saved({"model": {"in.weight": torch.zeros(2, 3), "out.weight": torch.zeros(3, 2)}})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return shapes['gone']", r"family 'mine' of mine 1\.0 failed: KeyError: 'gone'"),
        ("return None", r"family 'mine' of mine 1\.0 returned no Network: None"),
        ("raise NotThisNetwork('it is too flat')", "it is too flat"),
    ],
)
def test_family_that_fails_is_named_in_the_error_of_its_file(packages, my_file, body, reason):
    install_family(packages, body)
    with pytest.raises(UnknownLayout, match=reason):
        load_encoder(my_file)


def test_family_of_a_package_reads_what_no_other_does(packages, saved):
    source = (EXAMPLE / "mixer.py").read_text(encoding="utf-8")
    packages.add("lab", "[dse_monitor.families]\nexample-mixer = my_mixer:FAMILY\n", my_mixer=source)
    encoder = load_encoder(saved({"state_dict": mixer().state_dict()}))
    assert (encoder.num_tokens, encoder.width, encoder.image_size) == (16, 24, (32, 32))


def test_half_a_network_of_a_package_is_named(packages, saved):
    source = (EXAMPLE / "mixer.py").read_text(encoding="utf-8")
    packages.add("lab", "[dse_monitor.families]\nexample-mixer = my_mixer:FAMILY\n", my_mixer=source)
    state = mixer().state_dict()
    del state["embed.weight"]
    with pytest.raises(
        UnknownLayout, match=r"'mixers\.0\.across\.weight' is there but 'embed\.weight' is not"
    ):
        load_encoder(saved({"state_dict": state}))


@pytest.mark.parametrize("prefix", ["", "teacher."])
def test_dialect_of_a_package_takes_no_encoder_that_is_read_without_it(packages, saved, vit, prefix):
    install_family(packages, anchor="blocks.1.norm1.weight", needs="blocks.1.norm2.weight")
    encoder = load_encoder(
        saved({"model": {f"{prefix}{name}": value for name, value in vit.items()}}), **HEADS
    )
    assert encoder.arch.startswith("vit 192x2")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"family": "vit"}, "names the family 'vit', not 'mine'"),
        ({"anchor": ""}, "lacks anchor or needs"),
    ],
)
def test_family_that_breaks_the_contract_is_skipped_and_says_why(
    packages, saved, vit, caplog, changes, reason
):
    install_family(packages, **changes)
    with caplog.at_level(logging.WARNING):
        load_encoder(saved({"model": vit}), **HEADS)
    (line,) = (record.getMessage() for record in caplog.records)
    assert reason in line
    with pytest.raises(PluginError):
        families.load("mine")


def test_family_needs_a_function_and_a_dialect_with_a_name_of_its_own():
    dialect = DIALECTS[0]
    for family, reason in (
        ("family", "expected a Family, found str"),
        (families.Family("recognise"), "must be a function"),
        (families.Family(print, [dialect]), "must be a tuple of Dialect"),
        (families.Family(print), "dialects is empty"),
    ):
        with pytest.raises((TypeError, ValueError), match=reason):
            families.check("mine", family)
    with pytest.raises(ValueError, match="taken by a built-in one"):
        families.check(dialect.family, families.Family(print, (dialect,)))
