"""docs/networks.md is made from the tables, and the tables say what is so."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from dse_monitor.checkpoints.named.document import CLASSES, document

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.fast
def test_documentation_is_generated_from_the_tables():
    assert (ROOT / "docs" / "networks.md").read_text(encoding="utf-8") == document(), (
        "docs/networks.md is out of date: "
        "run `python -m dse_monitor.checkpoints.named.document > docs/networks.md`"
    )


@pytest.mark.fast
def test_every_class_of_timm_that_was_measured_opens():
    table = json.loads(CLASSES.read_text(encoding="utf-8"))
    assert len(table) >= 97
    assert not [kind for kind, row in table.items() if "refused" in row]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind",
    [
        "ConvNeXt",
        "EfficientNet",
        "Hiera",
        "MambaOut",
        "MaxxVit",
        "Nest",
        "Twins",
        "VisionTransformer",
        "Xcit",
    ],
)
def test_what_was_measured_is_measured_again(monkeypatch, kind):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    sweep = importlib.import_module("timm_sweep")
    known = json.loads(CLASSES.read_text(encoding="utf-8"))[kind]
    assert sweep.measured(known["example"]) == known


@pytest.mark.slow
def test_no_name_of_timm_ends_in_anything_but_a_network_or_a_refusal():
    """Every tenth name; any other exception fails."""
    import timm

    from dse_monitor.checkpoints.families.network import NotThisNetwork
    from dse_monitor.checkpoints.named.timm_networks import Named, plain

    said: list[str] = []
    for name in timm.list_models()[::10]:
        try:
            said += [] if plain(Named(arch=name, source="--arch")).required else [f"{name} has no tensors"]
        except NotThisNetwork as error:
            said.append(str(error))
    assert not said
