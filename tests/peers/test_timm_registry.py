"""Every class of timm's registry by its smallest member: read as timm computes it, or refused, never wrong.

`python -m pytest -n 0 -s -m long tests/peers/test_timm_registry.py` prints the whole table.
"""

import collections
import traceback
from dataclasses import dataclass

import pytest
import torch
from peers import TOLERANCE, images, timm_network, timm_tokens, train_py_args, write_as_timm

from dse_monitor.checkpoints import load_encoder
from dse_monitor.errors import CheckpointError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PREFIX = {"VOLO": 1, "CoaT": 1}  # class tokens that num_prefix_tokens does not count

# Classes whose forward_features gives no tokens of one grid: branches of two sizes, or class tokens alone.
WITHOUT_TOKENS = frozenset({"CrossVit", "PoolingVisionTransformer", "GlobalContextVit3d"})


@dataclass(frozen=True)
class Outcome:
    """What became of one model's file: `ok`, `refused`, `wrong`, or `crash`."""

    model: str
    kind: str
    result: str
    text: str


def outcome(name, folder):
    """Write a model of timm with its saver, read the file without options, compare."""
    args = train_py_args(name)
    model = timm_network(args)
    kind = type(model).__name__
    pixels = images(tuple(model.pretrained_cfg["input_size"][1:]), count=1)
    path = write_as_timm(model, args, folder)
    try:
        expected = timm_tokens(model, pixels, PREFIX.get(kind))
    except (AssertionError, AttributeError):
        expected = None  # timm itself has no tokens of one grid here
    try:
        encoder = load_encoder(path)
        found = encoder.dense_tokens(pixels)
    except CheckpointError as error:
        return Outcome(name, kind, "refused", str(error))
    except Exception:
        return Outcome(name, kind, "crash", traceback.format_exc().strip().splitlines()[-1])
    finally:
        path.unlink()
    if expected is None:
        return Outcome(name, kind, "wrong", f"read as {encoder.arch} although timm has no tokens there")
    if found.shape != expected.shape:
        return Outcome(name, kind, "wrong", f"{list(found.shape)} tokens, timm has {list(expected.shape)}")
    difference, scale = float((found - expected).abs().max()), float(expected.std())
    agree = difference <= TOLERANCE * scale
    return Outcome(
        name, kind, "ok" if agree else "wrong", f"max diff {difference:.2g}, timm's std {scale:.3g}"
    )


DOZEN = (
    "lcnet_050", "tinynet_e", "repghostnet_050", "rexnet_100", "selecsls42", "hardcorenas_a",
    "cs3darknet_focus_s", "skresnet18", "dla46_c", "shvit_s1", "swiftformer_xs", "fasternet_t0",
    "test_byobnet",
)  # fmt: skip


@pytest.mark.parametrize("name", DOZEN)
def test_a_dozen_further_classes(name, tmp_path, record_property):
    found = outcome(name, tmp_path)
    record_property("outcome", found.text)
    assert found.result == "ok", f"{found.kind} ({name}): {found.result}: {found.text}"


@pytest.mark.parametrize("name", ["pit_ti_224", "crossvit_tiny_240"])
def test_a_network_without_tokens_of_one_grid_is_refused_as_such(name, tmp_path):
    found = outcome(name, tmp_path)
    assert found.result == "refused", f"{found.kind}: {found.result}: {found.text}"
    assert "token" in found.text or "map" in found.text, found.text


def smallest_members():
    """The smallest model of every class, with the numbers of parameters, from timm's registry."""
    import timm

    members = collections.defaultdict(list)
    for name in timm.list_models():
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
        except Exception:  # those that look at values while they are built
            try:
                model = timm.create_model(name)
            except Exception:
                continue
        members[type(model).__name__].append((sum(p.numel() for p in model.parameters()), name))
    return {kind: min(found)[1] for kind, found in members.items()}


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_the_whole_registry(tmp_path):
    outcomes = [outcome(name, tmp_path) for name in sorted(smallest_members().values())]
    for each in outcomes:
        print(f"{each.result:8} {each.kind:30} {each.model:40} {each.text[:120]}")
    counts = collections.Counter(each.result for each in outcomes)
    print(f"{len(outcomes)} classes: " + ", ".join(f"{count} {result}" for result, count in counts.items()))
    assert not [each for each in outcomes if each.result in ("wrong", "crash")]
    refused = {each.kind for each in outcomes if each.result == "refused"}
    assert refused <= WITHOUT_TOKENS, f"refused although timm has tokens: {sorted(refused - WITHOUT_TOKENS)}"
