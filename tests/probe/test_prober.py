import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from preprocessings import rgb

from dse_monitor import scenes
from dse_monitor.cli import probe as command
from dse_monitor.cli.printing import FAILED
from dse_monitor.errors import CheckpointError, ImagesError, NonFiniteFeatures
from dse_monitor.probe import prober as probe

from_seed = torch.Generator().manual_seed


@pytest.fixture(scope="module")
def labels():
    """Masks of 40 scenes as classes of 4 x 4 patches, [40, 16]."""
    return probe.token_labels(np.stack([scenes.generate(index, 32)[1] for index in range(40)]), (4, 4))


def oracle(labels, width=16):
    """Tokens that know their class and nothing else."""
    codes = torch.randn(len(scenes.CLASSES) + 1, width, generator=from_seed(0))
    return codes[torch.from_numpy(labels)]  # IGNORED takes the last code


def test_tokens_that_know_the_mask_reach_one(labels):
    for score in probe.score_tokens(oracle(labels), labels):
        assert score.miou == pytest.approx(1)
        assert score.accuracy == pytest.approx(1)
        assert score.miou_std == pytest.approx(0, abs=1e-9)
        assert set(score.iou) == set(np.unique(labels)) - {probe.IGNORED}


def test_tokens_that_know_nothing_stay_at_chance(labels):
    noise = torch.randn(40, 16, 8, generator=from_seed(1))
    classes = len(np.unique(labels)) - 1
    for score in probe.score_tokens(noise, labels):
        assert score.accuracy < 2 / classes
        assert score.miou < 0.12


def test_score_falls_as_noise_grows(labels):
    noise = torch.randn(40, 16, 16, generator=from_seed(2))
    scores = [probe.score_tokens(oracle(labels) + amount * noise, labels) for amount in (0, 1, 2.5, 10)]
    for kind in (0, 1):
        mious = [score[kind].miou for score in scores]
        assert mious == sorted(mious, reverse=True)
        assert mious[0] > mious[1] > mious[2] > mious[3]


def test_linear_probe_does_not_depend_on_scale_shift_or_a_dead_dimension(labels):
    tokens = oracle(labels) + 1.5 * torch.randn(40, 16, 16, generator=from_seed(3))
    plain = probe.score_tokens(tokens, labels, splits=1)[0]
    dead = torch.full((40, 16, 1), 7.0)
    moved = probe.score_tokens(torch.cat([tokens * 100 - 30, dead], 2), labels, splits=1)[0]
    assert moved.miou == pytest.approx(plain.miou, abs=0.01)


def test_linear_probe_separates_what_is_linearly_separable_and_no_more():
    x = torch.randn(400, 2, generator=from_seed(4))
    line, exclusive_or = (x[:, 0] + x[:, 1] > 0).long(), ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()
    assert (probe.linear_probe(x, line, x, 2) == line).float().mean() > 0.98
    assert (probe.linear_probe(x, exclusive_or, x, 2) == exclusive_or).float().mean() < 0.75
    assert (probe.neighbour_probe(x, exclusive_or, x, 2, 5) == exclusive_or).float().mean() > 0.9


def test_neighbours_vote_by_similarity_as_computed_one_by_one():
    x, queries = torch.randn(60, 5, generator=from_seed(5)), torch.randn(30, 5, generator=from_seed(6))
    y = torch.randint(0, 4, (60,), generator=from_seed(7))
    expected = []
    for query in queries:
        similarity = torch.nn.functional.cosine_similarity(x, query[None])
        votes = [0.0] * 4
        for i in similarity.argsort(descending=True)[:7].tolist():
            votes[int(y[i])] += math.exp(float(similarity[i]) / 0.07)
        expected.append(int(np.argmax(votes)))
    assert probe.neighbour_probe(x, y, queries, 4, 7).tolist() == expected


def test_a_large_bank_is_thinned_out_the_same_way_each_time(monkeypatch):
    monkeypatch.setattr(probe, "BANK", 50)
    x, y = torch.randn(400, 6, generator=from_seed(8)), torch.arange(400) % 3
    first = probe.neighbour_probe(x, y, x, 3, 5, seed=1)
    assert torch.equal(first, probe.neighbour_probe(x, y, x, 3, 5, seed=1))
    assert not torch.equal(first, probe.neighbour_probe(x, y, x, 3, 5, seed=2))


def test_equal_arguments_give_equal_scores_and_seeds_matter(labels):
    tokens = oracle(labels) + 2 * torch.randn(40, 16, 16, generator=from_seed(9))
    first = probe.score_tokens(tokens, labels)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert probe.score_tokens(tokens, labels) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert probe.score_tokens(tokens, labels, seed=1) != first


def test_no_image_is_in_both_halves(labels, monkeypatch):
    seen = []

    def remember(x, y, x_test, classes):
        seen.append((set(x[:, 0].tolist()), set(x_test[:, 0].tolist())))
        return torch.zeros(len(x_test), dtype=torch.long)

    monkeypatch.setattr(probe, "linear_probe", remember)
    numbers = torch.arange(40.0)[:, None, None].expand(40, 16, 3)
    probe.score_tokens(numbers, labels)
    assert len(seen) == 3
    assert len({frozenset(train) for train, _ in seen}) == 3  # each split is another one
    for train, held_out in seen:
        assert not train & held_out
        assert len(train) == len(held_out) == 20


def test_iou_counts_classes_equally_however_rare():
    confusion = np.array([[90, 10], [1, 1]])  # a frequent class and a rare one
    score = probe._score([confusion], np.array([3, 8]))
    assert score.iou == {3: pytest.approx(90 / 101), 8: pytest.approx(1 / 12)}
    assert score.miou == pytest.approx((90 / 101 + 1 / 12) / 2)
    assert score.accuracy == pytest.approx((0.9 + 0.5) / 2)
    assert math.isnan(score.miou_std)


def test_class_absent_from_the_held_out_half_is_left_out():
    absent = np.array([[5, 1, 0], [0, 0, 0], [0, 0, 4]])
    present = np.array([[5, 1, 0], [0, 2, 0], [0, 0, 4]])
    score = probe._score([absent, absent], np.array([0, 1, 2]))
    assert set(score.iou) == {0, 2}
    assert score.miou == pytest.approx((5 / 6 + 1) / 2)
    assert set(probe._score([absent, present], np.array([0, 1, 2])).iou) == {0, 1, 2}


def test_a_patch_has_the_class_that_fills_half_of_it():
    mask = np.zeros((1, 8, 8), np.uint8)
    mask[0, :4, 4:] = 5  # all of the second patch
    mask[0, 4:, :2] = 7  # half of the third
    mask[0, 4:, 4:] = np.arange(4)[:, None] // 1 + 1  # a quarter each of the fourth
    expected = [[0, 5, 0, probe.IGNORED]]  # a tie goes to the smaller class
    np.testing.assert_array_equal(probe.token_labels(mask, (2, 2)), expected)


def test_ignored_pixels_count_against_a_patch():
    mask = np.full((1, 8, 8), 255, np.uint8)
    mask[0, :4, :3] = 2  # three quarters of the first patch
    mask[0, :4, 4:5] = 2  # one quarter of the second
    expected = [[2, probe.IGNORED, probe.IGNORED, probe.IGNORED]]
    np.testing.assert_array_equal(probe.token_labels(mask, (2, 2)), expected)
    assert probe.token_labels(mask, (2, 2), ignore=2).tolist() == [[probe.IGNORED, 255, 255, 255]]


def test_patches_need_not_divide_the_image():
    mask = np.zeros((1, 10, 10), np.int32)
    mask[0, :, 7:] = 300
    np.testing.assert_array_equal(probe.token_labels(mask, (3, 3)), [[0, 0, 300] * 3])
    with pytest.raises(ImagesError, match="no grid"):
        probe.token_labels(mask, (0, 0))


@pytest.mark.parametrize("filling", [3, 255])
def test_masks_without_two_classes_are_refused(filling):
    labels = probe.token_labels(np.full((6, 8, 8), filling, np.uint8), (2, 2))
    with pytest.raises(ImagesError, match="at least 2 are needed"):
        probe.score_tokens(torch.randn(6, 4, 3), labels)


@pytest.fixture
def pairs(tmp_path):
    scenes.write_folder(tmp_path, 12, size=40, masks=True)
    return probe.ProbeConfig(
        images=tmp_path / "images", masks=tmp_path / "masks", num_images=10, splits=2, device="cpu"
    )


def test_images_and_masks_are_cropped_alike(pairs, tmp_path):
    for index in range(12):  # a mask that repeats what the image shows
        with Image.open(tmp_path / "masks" / f"{index:06d}.png") as mask:
            values = np.asarray(mask)
        Image.fromarray(np.repeat(values[..., None] * 20, 3, 2)).save(
            tmp_path / "images" / f"{index:06d}.png"
        )
    pixels, masks = probe.read_pairs(pairs, rgb(32))
    assert pixels.shape == (10, 32, 32, 3)
    inside = np.abs(pixels[..., 0].astype(int) - 20 * masks) <= 10  # bicubic and nearest differ at rims
    assert inside.mean() > 0.85
    shifted = np.abs(pixels[..., 0].astype(int) - 20 * np.roll(masks, 2, axis=2)) <= 10
    assert shifted.mean() < inside.mean() - 0.05


def test_sample_of_pairs_is_seeded(pairs):
    first = probe.read_pairs(pairs, rgb(32))[0]
    np.testing.assert_array_equal(first, probe.read_pairs(pairs, rgb(32))[0])
    other = probe.ProbeConfig(images=pairs.images, masks=pairs.masks, num_images=10, seed=1)
    assert (probe.read_pairs(other, rgb(32))[0] != first).any()


def test_images_without_a_mask_are_left_out(pairs):
    (pairs.masks / "000003.png").unlink()
    (pairs.masks / "000005.png").unlink()
    (pairs.masks / "000007.png").unlink()
    assert len(probe.read_pairs(pairs, rgb(32))[0]) == 9


def test_too_few_pairs_are_an_error_that_names_both_folders(pairs, tmp_path):
    (tmp_path / "empty").mkdir()
    empty = probe.ProbeConfig(images=pairs.images, masks=tmp_path / "empty")
    with pytest.raises(ImagesError, match=r"images: 0 images have a mask of the same name in .*empty"):
        probe.read_pairs(empty, rgb(32))


def test_masks_that_cannot_be_meant_are_refused(pairs, tmp_path):
    mask = tmp_path / "mask.png"
    Image.new("RGB", (40, 40)).save(mask)
    with pytest.raises(ImagesError, match="is a RGB image, expected one channel"):
        probe.read_mask(mask, (40, 40), rgb(32, 37))
    Image.new("L", (41, 40)).save(mask)
    with pytest.raises(ImagesError, match="they must agree"):
        probe.read_mask(mask, (40, 40), rgb(32, 37))
    mask.write_bytes(b"nothing")
    with pytest.raises(ImagesError, match="cannot be decoded"):
        probe.read_mask(mask, (40, 40), rgb(32, 37))


def test_sixteen_bit_masks_keep_their_class_numbers(pairs, tmp_path):
    Image.fromarray(np.full((40, 40), 1234, np.uint16)).save(tmp_path / "mask.png")
    assert (probe.read_mask(tmp_path / "mask.png", (40, 40), rgb(32, 37)) == 1234).all()


def test_unreadable_image_is_named(pairs):
    (pairs.images / "000000.png").write_bytes(b"nothing")
    whole = probe.ProbeConfig(images=pairs.images, masks=pairs.masks)
    with pytest.raises(ImagesError, match=r"000000\.png: cannot be decoded .* remove it and its mask"):
        probe.read_pairs(whole, rgb(32))


@pytest.mark.parametrize("changes", [{"splits": 0}, {"neighbours": 0}, {"num_images": 3}])
def test_senseless_numbers_are_refused(changes):
    with pytest.raises(ValueError, match="are needed"):
        probe.Prober(probe.ProbeConfig(images=Path("i"), masks=Path("m"), **changes))


def test_checkpoint_is_probed_end_to_end(pairs, tmp_path, write_checkpoint):
    path = write_checkpoint(tmp_path / "checkpoint_0004.pth")
    calls = []
    result = probe.Prober(pairs)(path, lambda *call: calls.append(call))
    assert (result.path, result.epoch, result.step) == (path.as_posix(), 4, 40)
    assert (result.images, result.linear.miou <= 1, result.knn.miou <= 1) == (10, True, True)
    assert 100 < result.tokens <= 160
    assert {stage for stage, _, _ in calls} == {"images", "forward", "probe"}
    assert calls[-1] == ("probe", 2, 2)
    json.dumps(result.to_json(), allow_nan=False)
    again = probe.probe(path, pairs.images, pairs.masks, num_images=10, splits=2, device="cpu")
    assert again == result
    single = probe.probe(path, pairs.images, pairs.masks, num_images=10, splits=1, device="cpu")
    assert single.to_json()["linear"]["miou_std"] is None


def test_checkpoints_that_cannot_be_probed_are_errors(pairs, tmp_path, write_checkpoint):
    prober = probe.Prober(pairs)
    (tmp_path / "garbage.pth").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError):
        prober(tmp_path / "garbage.pth")
    spoiled = write_checkpoint(tmp_path / "nan.pth", change=lambda net: net.norm.weight.fill_(math.nan))
    with pytest.raises(NonFiniteFeatures, match="weights"):
        prober(spoiled)
    overflowing = write_checkpoint(
        tmp_path / "overflow.pth",
        change=lambda net: (net.norm.weight.fill_(1e38), net.norm.bias.fill_(3e38)),
    )
    with pytest.raises(NonFiniteFeatures, match="tokens"):
        prober(overflowing)


def test_bad_checkpoints_do_not_stop_the_others(pairs, tmp_path, write_checkpoint, capsys):
    garbage, missing = tmp_path / "garbage.pth", tmp_path / "missing.pth"
    garbage.write_bytes(b"no checkpoint")
    spoiled = write_checkpoint(tmp_path / "nan.pth", change=lambda net: net.norm.weight.fill_(math.nan))
    good = write_checkpoint(tmp_path / "checkpoint_0004.pth")
    every = command.ProbeOptions(checkpoints=(garbage, missing, spoiled, good), config=pairs, json=True)
    assert command.probe(every) == FAILED
    said = capsys.readouterr()
    assert [json.loads(line)["path"] for line in said.out.splitlines()] == [good.as_posix()]
    assert all(f"{path}: not probed: " in said.err for path in (garbage, missing, spoiled))
    assert command.probe(dataclasses.replace(every, checkpoints=(good,))) == 0


def test_labelled_arrays_are_cropped_like_their_masks(tmp_path):
    """Bands of an oblong network: values that repeat the mask, in arrays of 16 bits."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    rng = np.random.default_rng(0)
    for index in range(8):
        mask = np.kron(rng.integers(0, 5, (6, 10), dtype=np.uint8), np.ones((8, 8), np.uint8))
        Image.fromarray(mask).save(tmp_path / "masks" / f"{index}.png")
        np.save(tmp_path / "images" / f"{index}.npy", np.stack([mask, mask + 1], 2).astype(np.uint16) * 100)
    labelled = probe.ProbeConfig(
        images=tmp_path / "images", masks=tmp_path / "masks", device="cpu", bands=[2, 1], scale=100.0
    )
    how = rgb((24, 40), channels=2, interpolation="nearest")
    pixels, masks = probe.read_pairs(labelled, how)
    assert (pixels.shape, masks.shape) == ((8, 24, 40, 2), (8, 24, 40))
    np.testing.assert_array_equal(pixels, np.stack([masks + 1, masks], 3))
    with Image.open(tmp_path / "masks" / "0.png") as mask:
        mask.crop((0, 0, 40, 48)).save(tmp_path / "masks" / "0.png")
    with pytest.raises(ImagesError, match=r"is \(40, 48\) px, its image is \(80, 48\) px"):
        probe.read_pairs(labelled, how)


def test_patches_of_an_oblong_grid_have_the_classes_of_their_pixels():
    mask = np.repeat(np.arange(8)[None, None], 4, 1).repeat(2, 0)  # [2, 4, 8]: a class per column
    expected = np.tile(np.arange(8), (2, 2))
    np.testing.assert_array_equal(probe.token_labels(mask, (2, 8)), expected)
