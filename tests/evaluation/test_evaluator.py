import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from preprocessings import rgb
from torch.utils.flop_counter import FlopCounterMode

from dse_monitor import scenes
from dse_monitor.checkpoints import load_encoder
from dse_monitor.encoder import Encoder
from dse_monitor.errors import DeviceError, ImagesError
from dse_monitor.evaluation import decoding, image_cache, images
from dse_monitor.evaluation.config import EvaluationConfig, Placement
from dse_monitor.evaluation.evaluator import (
    Evaluator,
    HeldOut,
    batches,
    is_constant,
    resolve_device,
    token_grid,
)
from dse_monitor.metric import average, companions, measure
from dse_monitor.runs.record import Source, evaluation_from_json, to_json
from dse_monitor.tokens import from_map


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return scenes.write_folder(tmp_path_factory.mktemp("pictures"), 48, size=40)


@pytest.fixture
def config(pictures):
    return EvaluationConfig(images=pictures, num_images=48, batch=16)


@pytest.fixture
def evaluator(config, tmp_path):
    """evaluator(seed=1, maps="out", clock=...) -> an Evaluator of `config` with those changes."""

    def make(clock=None, held_out=None, device="cpu", maps=None, **changes):
        place = Placement(cache=str(tmp_path / "cache"), device=device, maps=maps)
        given = {"clock": clock} if clock else {}
        return Evaluator(dataclasses.replace(config, **changes), place, held_out=held_out, **given)

    return make


@pytest.fixture
def checkpoint(tmp_path, write_checkpoint):
    return write_checkpoint(tmp_path / "checkpoint_0004.pth")


def test_components_are_those_of_the_encoder_on_the_images(config, evaluator, checkpoint, tmp_path):
    result = evaluator()(checkpoint)
    held_out = images.prepare(config.images, rgb(32), num_images=48, cache=tmp_path / "another cache")
    encoder = load_encoder(checkpoint)
    tokens = encoder.encode(held_out.pixels)
    expected = average([measure(tokens[16 * i : 16 * i + 16], seed=i) for i in range(3)])
    assert result.status == "scored"
    for field in dataclasses.fields(expected):
        assert getattr(result.components, field.name) == pytest.approx(
            getattr(expected, field.name), rel=1e-5
        )
    assert (result.components.images, result.components.tokens, result.components.width) == (48, 16, 24)


def test_settings_say_what_was_measured(evaluator, checkpoint):
    evaluate = evaluator(seed=3, group=4, local_clusters=2, global_clusters=6, normalize=False)
    settings = evaluate(checkpoint).settings
    held_out = evaluate.image_set(rgb(32))
    assert settings.images == held_out.fingerprint
    assert (settings.num_images, settings.resize, settings.crop, settings.batch) == (48, 37, 32, 16)
    assert (settings.seed, settings.group, settings.local_clusters, settings.global_clusters) == (3, 4, 2, 6)
    assert settings.normalize is False
    assert settings.precision == "float32"
    assert settings.mean == (0.485, 0.456, 0.406)


def test_every_setting_of_the_metric_reaches_it(evaluator, checkpoint):
    def components(**changes):
        return evaluator(**changes)(checkpoint).components

    plain = components()
    assert components(local_clusters=2).m_intra_image != plain.m_intra_image
    assert components(global_clusters=5).m_intra_batch != plain.m_intra_batch
    assert components(group=4).m_inter != plain.m_inter
    assert components(normalize=False).m_dim != plain.m_dim
    assert components(batch=48).m_dim != plain.m_dim
    assert components(seed=1).m_inter != plain.m_inter
    assert components(num_images=16).images == 16


def test_record_names_the_file_and_survives_json(evaluator, checkpoint):
    result = evaluator(clock=lambda: 1234.5)(checkpoint, name="a/checkpoint_0004.pth", aliases=("last.pth",))
    assert (result.source.path, result.source.aliases) == ("a/checkpoint_0004.pth", ("last.pth",))
    assert (result.source.epoch, result.source.step, result.source.layout) == (4, 40, "dse-train")
    assert (result.source.size, len(result.source.content)) == (checkpoint.stat().st_size, 64)
    assert result.wall_time == 1234.5
    assert set(result.seconds) >= {"read", "images", "forward", "metric", "total"}
    assert all(seconds >= 0 for seconds in result.seconds.values())
    assert evaluation_from_json(json.loads(json.dumps(to_json(result), allow_nan=False))) == result


def test_companions_are_means_over_batches_and_finite(evaluator, checkpoint):
    result = evaluator(batch=24)(checkpoint)
    pixels = evaluator().image_set(rgb(32)).pixels
    tokens = load_encoder(checkpoint).encode(pixels)
    halves = [companions.measure(tokens[:24]), companions.measure(tokens[24:])]
    finite = {name for name in halves[0] if all(math.isfinite(half[name]) for half in halves)}
    assert set(result.companions) == finite
    assert "rankme_dense" in finite
    for name in finite:
        assert result.companions[name] == pytest.approx((halves[0][name] + halves[1][name]) / 2, rel=1e-4)


@pytest.fixture
def one_thread():
    """Torch's counter of products sees only the thread it is started in."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_products_are_those_of_one_pass_over_the_images_and_of_the_metric(evaluator, checkpoint, one_thread):
    def products(work):
        with FlopCounterMode(display=False) as counter:
            result = work()
        return counter.get_total_flops(), result

    pixels = evaluator().image_set(rgb(32)).pixels
    forward, tokens = products(lambda: load_encoder(checkpoint).encode(pixels))
    parts = [tokens[16 * i : 16 * i + 16] for i in range(3)]
    metric, _ = products(lambda: [(measure(part), companions.measure(part)) for part in parts])
    whole, _ = products(lambda: evaluator()(checkpoint))
    assert forward > 0.1 * whole  # else a second pass could hide
    assert whole < 1.03 * (forward + metric)


def numbers(result):
    return result.components, result.companions, result.settings


def test_the_same_checkpoint_gives_the_same_bits(evaluator, checkpoint):
    evaluate = evaluator()
    first = numbers(evaluate(checkpoint))
    assert numbers(evaluate(checkpoint)) == first
    assert numbers(evaluator()(checkpoint)) == first  # images come from the cache this time


def test_numbers_do_not_depend_on_the_micro_batch(evaluator, checkpoint):
    whole = evaluator(micro_batch=48)(checkpoint).components
    single = evaluator(micro_batch=1)(checkpoint).components
    for field in dataclasses.fields(whole):
        # float32 sums in another order; the errors divide by small numbers, so a looser bound there
        tolerance = 1e-3 if "_se" in field.name or "cov" in field.name else 1e-4
        assert getattr(single, field.name) == pytest.approx(getattr(whole, field.name), rel=tolerance)


def test_evaluating_leaves_the_global_generators_alone(evaluator, checkpoint):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()  # pyright: ignore
    evaluator()(checkpoint)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)  # pyright: ignore


def test_progress_names_the_stages_and_ends_full(evaluator, checkpoint):
    calls = []
    evaluator()(checkpoint, lambda *call: calls.append(call))
    last = {stage: (done, total) for stage, done, total in calls}
    assert last == {"read": (1, 1), "images": (48, 48), "forward": (48, 48), "metric": (3, 3)}
    forward = [done for stage, done, _ in calls if stage == "forward"]
    assert forward == sorted(forward)


def test_images_looked_at_before_are_not_checked_again(config, evaluator, checkpoint, tmp_path, monkeypatch):
    evaluate = evaluator()
    evaluate(checkpoint)  # decodes
    held_out = HeldOut(config, str(tmp_path / "cache"))
    held_out.at(rgb(32))
    evaluate = evaluator(held_out=held_out)
    evaluate.wake()
    checked = []
    monkeypatch.setattr(image_cache, "check_pixels", lambda *arguments: checked.append(arguments) or "")
    assert evaluate(checkpoint).status == "scored"
    assert not checked


def test_the_file_is_closed_before_anything_is_computed(evaluator, checkpoint):
    opened = []

    def look(stage, done, total):
        if stage != "read" or done:
            links = [
                os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd_exists(fd)
            ]
            opened.append(str(checkpoint) in links)

    def fd_exists(fd):
        return os.path.lexists(f"/proc/self/fd/{fd}")

    evaluator()(checkpoint, look)
    assert opened
    assert not any(opened)


def test_garbage_fails_with_its_reason_and_the_next_file_is_measured(evaluator, checkpoint, tmp_path):
    evaluate = evaluator()
    garbage = tmp_path / "garbage.pth"
    garbage.write_bytes(b"this is no checkpoint" * 50)
    result = evaluate(garbage, name="garbage.pth")
    assert (result.status, result.components, result.settings) == ("failed", None, None)
    assert "garbage.pth" in result.reason
    assert "\n" not in result.reason
    assert result.error not in ("", "Exception")
    assert result.source.size == 1050
    assert evaluate(checkpoint).status == "scored"


@pytest.mark.parametrize("given", [{"mean": (127.5,)}, {"std": (58.0,)}, {"mean": (-0.5,)}])
def test_a_mean_of_8_bit_values_is_refused_where_images_are_in_the_unit_interval(
    evaluator, checkpoint, given
):
    with pytest.raises(ImagesError, match=r"images are in \[0, 1\] .*divide both by 255.*--scale"):
        evaluator(**given)(checkpoint)


def test_a_mean_of_8_bit_values_is_taken_where_images_keep_them(evaluator, checkpoint):
    plain = evaluator(mean=(0.5,), std=(0.25,), bands=(1, 2, 3))(checkpoint)
    kept = evaluator(mean=(127.5,), std=(63.75,), scale=1.0)(checkpoint)
    assert (kept.status, kept.settings.mean) == ("scored", (127.5,) * 3)
    assert kept.components.separability == pytest.approx(plain.components.separability, abs=1e-3)


def test_truncated_file_fails(evaluator, checkpoint):
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2])
    result = evaluator()(checkpoint)
    assert (result.status, result.error) == ("failed", "IncompleteCheckpoint")


def test_file_that_is_not_there_is_an_os_error(evaluator, tmp_path):
    with pytest.raises(FileNotFoundError):
        evaluator()(tmp_path / "gone.pth")


def test_non_finite_weights_are_invalid_before_anything_is_computed(evaluator, tmp_path, write_checkpoint):
    def spoil(network):
        network.blocks[1].mlp.fc1.weight[3, 4] = math.nan

    result = evaluator()(write_checkpoint(tmp_path / "nan.pth", change=spoil))
    assert (result.status, result.error, result.components) == ("invalid", "NonFiniteWeights", None)
    assert "blocks.1.mlp.fc1.weight" in result.reason
    assert "forward" not in result.seconds
    assert result.source.epoch == 4


def test_features_that_overflow_are_invalid(evaluator, tmp_path, write_checkpoint):
    def spoil(network):
        network.norm.weight.fill_(1e38)
        network.norm.bias.fill_(3e38)

    result = evaluator()(write_checkpoint(tmp_path / "overflow.pth", change=spoil))
    assert (result.status, result.error, result.components) == ("invalid", "NonFiniteFeatures", None)
    assert result.settings is not None


def test_collapsed_features_are_invalid(evaluator, tmp_path, write_checkpoint):
    def spoil(network):
        network.norm.weight.zero_()
        network.norm.bias.normal_()

    result = evaluator()(write_checkpoint(tmp_path / "collapsed.pth", change=spoil))
    assert (result.status, result.error) == ("invalid", "ConstantFeatures")
    assert "collapsed" in result.reason


def test_what_nobody_foresaw_fails_one_checkpoint_only(evaluator, checkpoint, monkeypatch):
    evaluate = evaluator()

    def surprise(*args, **kwargs):
        raise KeyError("deep inside")

    with monkeypatch.context() as patch:
        patch.setattr("dse_monitor.checkpoints.load.recognise", surprise)
        result = evaluate(checkpoint)
    assert (result.status, result.error) == ("failed", "KeyError")
    assert "unexpected KeyError: 'deep inside'" in result.reason
    assert evaluate(checkpoint).status == "scored"


@pytest.mark.parametrize(
    "message", ["CUDA error: an illegal memory access", "can't allocate memory: you tried"]
)
def test_device_that_breaks_or_fills_up_is_not_the_checkpoints_fault(
    evaluator, checkpoint, monkeypatch, message
):
    def broken(*args, **kwargs):
        raise RuntimeError(message)

    evaluate = evaluator()
    monkeypatch.setattr("dse_monitor.encoder.Encoder.encode", broken)
    with pytest.raises(DeviceError, match="start again"):
        evaluate(checkpoint)


def test_bad_images_are_raised_not_recorded(evaluator, checkpoint, tmp_path):
    with pytest.raises(ImagesError):
        evaluator(images=tmp_path / "nowhere")(checkpoint)


def test_maps_are_painted_beside_the_images_they_show(evaluator, checkpoint, tmp_path, write_checkpoint):
    output = tmp_path / "dse"
    evaluate = evaluator(maps=str(output), batch=4)  # examples from two batches
    first = evaluate(checkpoint)
    second = evaluate(write_checkpoint(tmp_path / "other.pth", seed=1))
    assert first.map_file != second.map_file
    with Image.open(output / first.map_file) as strip:
        assert strip.size == (6 * 4, 3 * 4)
        local = np.asarray(strip)[4:8].reshape(4, 6, 4, 3).swapaxes(0, 1).reshape(6, 16, 3)
    assert all(len(np.unique(tile, axis=0)) == 3 for tile in local)  # clusters within an image
    with Image.open(output / "media" / "images.webp") as strip:
        assert strip.size == (6 * 32, 32)
        first = np.asarray(strip)[:, :32].astype(int)
    assert np.abs(first - evaluate.image_set(rgb(32)).pixels[0]).mean() < 12  # a lossy format
    before = (output / second.map_file).read_bytes()
    assert evaluate(tmp_path / "other.pth").map_file == second.map_file
    assert (output / second.map_file).read_bytes() == before


def test_no_maps_are_painted_unless_asked_for(evaluator, checkpoint, tmp_path):
    assert evaluator()(checkpoint).map_file == ""
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "checkpoint_0004.pth"}


@given(count=st.integers(8, 5000), batch=st.integers(1, 3000), group=st.integers(1, 64))
def test_batches_cover_all_images_once_in_equal_whole_groups(count, batch, group):
    parts = list(batches(count, batch, group))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(count))
    groups = [-(-(part.stop - part.start) // group) for part in parts]
    assert max(groups) - min(groups) <= 1
    assert all((part.stop - part.start) % group == 0 for part in parts[:-1])


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (2048, [1024, 1024]),
        (1024, [1024]),
        (256, [256]),
        (1100, [1100]),
        (1600, [800, 800]),
        (2500, [1248, 1252]),
    ],
)
def test_number_of_batches_is_the_nearest_to_what_was_asked(count, sizes):
    assert [part.stop - part.start for part in batches(count, 1024, 8)] == sizes


def test_constant_tokens_are_told_from_nearly_constant_ones():
    tokens = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0)).expand(5, 4, 8).clone()
    assert is_constant(tokens)
    assert is_constant(torch.zeros(5, 4, 8))
    assert is_constant(tokens * (1 + 1e-7))
    for image, token in [(0, 2), (3, 1)]:
        other = tokens.clone()
        other[image, token, 5] += 1e-3
        assert not is_constant(other)
    tokens[4, 3, 2] = math.nan
    assert not is_constant(tokens)


def test_config_and_placement_survive_json(config):
    changed = dataclasses.replace(config, micro_batch=3, layout="dino", normalize=False)
    assert EvaluationConfig.from_json(json.loads(json.dumps(changed.to_json()))) == changed
    place = Placement(cache="c", device="cuda:1", maps="m")
    assert Placement.from_json(json.loads(json.dumps(place.to_json()))) == place


def test_images_are_named_from_the_root_on():
    """A ledger that is read elsewhere still says which images were meant."""
    assert EvaluationConfig(images=Path("i")).images == Path.cwd() / "i"
    assert EvaluationConfig(images=Path("~/i")).images == Path.home() / "i"


@pytest.mark.parametrize(
    "changes",
    [
        {"num_images": 7},
        {"batch": 0},
        {"group": 0},
        {"local_clusters": 0},
        {"global_clusters": 1},
        {"seed": -1},
        {"image_size": 8},
        {"micro_batch": 0},
        {"num_heads": 0},
        {"precision": "float8"},
    ],
)
def test_senseless_config_is_refused(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=name):
        EvaluationConfig(images="i", **changes)


@pytest.mark.parametrize("device", ["gpu", "cuda:x"])
def test_unknown_device_is_refused(device):
    with pytest.raises(ValueError, match="device"):
        Placement(cache="c", device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_missing_device_is_named(evaluator, name):
    with pytest.raises(DeviceError, match=rf"{name}: .* finds 0 CUDA devices"):
        evaluator(device=name)


def test_auto_takes_what_is_there():
    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
    assert (resolve_device("auto").type == "cpu") == (not accelerated)
    assert resolve_device("cpu").type == "cpu"


def test_settings_can_be_written_down_without_torch():
    code = "import sys, dse_monitor.evaluation.evaluator; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def arrays(pictures, tmp_path):
    """arrays(change) -> the pictures as .npy files of what `change` makes of their pixels [H, W, 3]."""

    def write(change, name="arrays"):
        folder = tmp_path / name
        folder.mkdir()
        for path in sorted(pictures.glob("*.png")):
            with Image.open(path) as picture:
                np.save(folder / path.with_suffix(".npy").name, change(np.asarray(picture)))
        return folder

    return write


def by_name(evaluate):
    """Pixels by the name of their file without its suffix, on which their order depends."""
    held_out = evaluate.image_set(rgb(32, interpolation="bilinear"))  # which does not overshoot
    return {name.partition(".")[0]: row for name, row in zip(held_out.names, held_out.pixels, strict=True)}


@pytest.mark.parametrize(
    ("change", "scale", "scaling"),
    [
        (lambda pixels: pixels.transpose(2, 0, 1).astype(np.uint16) * 257, None, "uint16 / 65535"),
        (lambda pixels: pixels / np.float32(255), None, "float32 as it is"),
        (lambda pixels: pixels.astype(np.int32) * 100, 25_500.0, "int32 / 25500"),
    ],
)
def test_deeper_arrays_of_the_same_scenes_look_the_same(
    evaluator, checkpoint, arrays, tmp_path, change, scale, scaling
):
    plain = by_name(evaluator())
    evaluate = evaluator(images=arrays(change), scale=scale, maps=str(tmp_path / "dse"))
    for name, row in by_name(evaluate).items():
        difference = np.abs(row * 255 - plain[name])
        assert difference.max() <= 1.01  # pictures are rounded to 8 bits twice, across and then down
    result = evaluate(checkpoint)
    assert (result.status, result.settings.scaling) == ("scored", scaling)
    assert (tmp_path / "dse" / result.map_file).exists()


def test_bands_are_settings_and_move_the_fingerprint(evaluator, checkpoint, arrays):
    folder = arrays(lambda pixels: np.concatenate([pixels, pixels], 2))
    first, second = (evaluator(images=folder, bands=bands)(checkpoint) for bands in ((1, 2, 3), (6, 5, 4)))
    assert (first.settings.bands, second.settings.bands) == ((1, 2, 3), (6, 5, 4))
    assert first.settings.fingerprint != second.settings.fingerprint
    assert first.components != second.components
    with pytest.raises(ImagesError, match="the network takes 3 channels, the files hold 6 bands"):
        evaluator(images=folder)(checkpoint)


def test_a_transform_replaces_mean_and_deviation_too(config, evaluator, checkpoint, tmp_path):
    encoder = load_encoder(checkpoint)
    mean, std = (
        np.array(each, np.float32)[:, None, None]
        for each in (encoder.preprocessing.mean, encoder.preprocessing.std)
    )

    def transform(path):
        pixels = decoding.read_picture(path, encoder.preprocessing)
        return (pixels.transpose(2, 0, 1) / np.float32(255) - mean) / std

    class Transformed(HeldOut):
        def at(self, how, progress=None, **_):
            return super().at(how, progress, transform=transform, transform_id="abc")

    held_out = Transformed(config, str(tmp_path / "cache"))
    result, expected = evaluator(held_out=held_out)(checkpoint), evaluator()(checkpoint)
    assert result.components.dse(1.0) == pytest.approx(expected.components.dse(1.0), rel=1e-3)
    settings = result.settings
    assert (settings.mean, settings.std, settings.scaling) == ((0.0,) * 3, (1.0,) * 3, "by the transform")
    assert settings.fingerprint != expected.settings.fingerprint


def test_what_a_user_should_know_of_the_images_is_logged_once(evaluator, checkpoint, arrays, caplog):
    evaluate = evaluator(images=arrays(lambda pixels: pixels[..., 0] / np.float32(255)), num_images=60)
    for _ in range(2):
        evaluate(checkpoint)
    said = [record.getMessage() for record in caplog.records if record.name == "dse_monitor.images"]
    assert len(said) == 2
    assert "48 usable images, 60 asked for" in said[0]
    assert said[1] == "files of float32: 1 band, repeated for the network's 3 channels, float32 as it is"


@pytest.mark.parametrize(
    ("size", "count", "grid"),
    [
        ((32, 32), 16, (4, 4)),
        ((32, 128), 64, (4, 16)),
        ((64, 48), 48, (8, 6)),
        ((36, 36), 16, (4, 4)),  # rounded down, as patches are
        ((36, 36), 25, (5, 5)),  # rounded up, as maps of convolutions are
        ((32, 32), 17, (0, 0)),
    ],
)
def test_tokens_of_another_size_have_a_grid_in_proportion(checkpoint, size, count, grid):
    assert token_grid(load_encoder(checkpoint), size, count) == grid


def test_a_network_of_thirteen_channels_and_oblong_images_is_measured_and_painted(
    evaluator, tmp_path, monkeypatch
):
    folder = tmp_path / "tiles"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(16):
        blocks = np.kron(rng.integers(0, 4000, (13, 6, 8)), np.ones((1, 8, 8), int))
        np.save(folder / f"{index}.npy", (blocks + rng.integers(0, 500, blocks.shape)).astype(np.uint16))
    torch.manual_seed(0)
    how = rgb((32, 64), channels=13)
    encoder = Encoder(
        torch.nn.Conv2d(13, 24, 8, 8),
        Source(path="own.pth", arch="thirteen channels"),
        tokens=lambda module, batch, layer: from_map(module(batch)),
        grid=(4, 8),
        width=24,
        preprocessing=how,
    )
    monkeypatch.setattr(Evaluator, "_load", lambda self, path, progress: encoder)
    evaluate = evaluator(
        images=folder, num_images=16, scale=10_000.0, maps=str(tmp_path / "dse"), preview_bands=(4, 3, 2)
    )
    result = evaluate(tmp_path / "own.pth")
    assert (result.status, result.components.tokens, result.components.width) == ("scored", 32, 24)
    settings = result.settings
    assert (settings.crop, settings.resize, settings.channels) == ((32, 64), (37, 73), 13)
    assert settings.scaling == "uint16 / 10000"
    pixels = torch.from_numpy(evaluate.image_set(how).pixels.copy()).permute(0, 3, 1, 2)
    with torch.no_grad():
        tokens = encoder.module((pixels - 0.5) / 0.2).flatten(2).transpose(1, 2)
    expected = measure(tokens, seed=0)
    assert result.components.m_inter == pytest.approx(expected.m_inter, rel=1e-4)
    with Image.open(tmp_path / "dse" / result.map_file) as strip:
        assert strip.size == (6 * 8, 3 * 4)
    with Image.open(tmp_path / "dse" / "media" / "images.webp") as strip:
        assert strip.size == (6 * 64, 32)
