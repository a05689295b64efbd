"""Standard errors against the scatter of the numbers over independent images."""

import math

import pytest
import torch

from dse_monitor.metric import measure, uncertainty

NAMES = ("m_inter", "m_intra_image", "m_intra_batch", "m_dim", "separability")


@pytest.mark.parametrize(("images", "width", "normalize"), [(64, 48, True), (48, 16, False)])
def test_errors_agree_with_the_scatter_over_independent_images(scenes, images, width, normalize):
    measured = [
        measure(scenes(images, 9, width, seed), seed=seed, normalize=normalize, global_clusters=8, group=4)
        for seed in range(100, 140)
    ]
    for name in NAMES:
        scatter = torch.tensor([getattr(one, name) for one in measured]).std()
        stated = torch.tensor([getattr(one, f"{name}_se") for one in measured]).square().mean().sqrt()
        assert 0.65 < stated / scatter < 1.6, name  # forty draws know their own scatter to 11 %
    for lam in (1.0, 10.0):
        scatter = torch.tensor([one.dse(lam) for one in measured]).std()
        stated = torch.tensor([one.dse_se(lam) for one in measured]).square().mean().sqrt()
        assert 0.65 < stated / scatter < 1.6


def test_error_falls_with_the_root_of_the_images(scenes):
    few, many = measure(scenes(64, 9, 24), group=4), measure(scenes(576, 9, 24), group=4)
    for name in NAMES:
        ratio = getattr(few, f"{name}_se") / getattr(many, f"{name}_se")
        assert 1.8 < ratio < 5, name  # nine times the images; sixteen blocks know an error to a fifth


@pytest.mark.parametrize("images", [1, 2, 15, 16, 33, 100, 1024, 1080])
@pytest.mark.parametrize("group", [1, 6, 8, 1000])
def test_blocks_nest_with_groups(images, group):
    block = uncertainty.left_out_block(images, group)
    assert block % group == 0 or group % block == 0
    assert images // block >= min(images, uncertainty.JACKKNIFE_BLOCKS)


def test_leaving_out_blocks_of_a_mean_gives_its_error():
    values = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    without = (values.sum() - values) / 199
    expected = values.std() / 200**0.5
    assert uncertainty.standard_error(uncertainty.of_left_out(without)) == pytest.approx(
        float(expected), rel=1e-9
    )
    assert uncertainty.standard_error(uncertainty.of_mean(values)) == pytest.approx(float(expected), rel=1e-9)


def test_few_positions_predict_the_error_over_all():
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(2000, dtype=torch.float64, generator=generator)
    parts = 0.5 * shared + torch.randn(50, 2000, dtype=torch.float64, generator=generator)
    every = uncertainty.standard_error_over_positions(parts, 50)
    few = uncertainty.standard_error_over_positions(parts[:4], 50)
    assert few == pytest.approx(every, rel=0.1)
    assert uncertainty.standard_error(parts[:4].mean(0)) > 1.3 * every


@pytest.mark.parametrize(("group", "block"), [(8, 2), (8, 8), (8, 24)])
def test_correlation_over_groups_and_blocks_equals_that_over_images(group, block):
    images = 24 * 400
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(images, dtype=torch.float64, generator=generator)
    second = 0.6 * first + torch.randn(images, dtype=torch.float64, generator=generator)
    measured = uncertainty.correlation_of_blocks(
        first.view(-1, group).sum(1), second.view(-1, block).sum(1), group=group, block=block
    )
    assert measured == pytest.approx(0.6 / math.hypot(0.6, 1), abs=0.1)


def test_correlation_of_opposite_parts_leaves_an_error():
    parts = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert -1 < uncertainty.correlation_of_blocks(parts, -parts, group=8, block=8) < -0.8
    assert uncertainty.correlation_of_blocks(parts, torch.zeros_like(parts), group=8, block=8) == 0
    assert uncertainty.correlation_of_blocks(parts[:2], parts[:2], group=8, block=8) == 0
    assert math.isnan(uncertainty.correlation_of_blocks(parts[:1], parts[:1], group=8, block=8))
