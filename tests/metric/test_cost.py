"""What the metric costs, counted and not timed, so that a slow path cannot slip in unnoticed."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from dse_monitor.metric import DSERegularizer, clustering, measure


@pytest.fixture(autouse=True)
def _one_thread():
    """The profiler and the counter see only the thread they are started in."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _calls(work):
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        work()
    return sum(event.count for event in recorded.key_averages())


def test_calls_do_not_grow_with_images(scenes):
    few, many = scenes(64, 9, 8), scenes(512, 9, 8)  # both fit one piece of working memory
    assert _calls(lambda: measure(many)) < 1.3 * _calls(lambda: measure(few))


def test_calls_do_not_grow_with_tokens_beyond_the_sizes_of_clusters(scenes):
    few, many = scenes(32, 16, 8), scenes(32, 64, 8)
    assert _calls(lambda: measure(many)) < 2 * _calls(lambda: measure(few))


def test_products_stay_within_their_count(scenes):
    images, positions, width, group, clusters = 16, 49, 64, 8, 24
    with FlopCounterMode(display=False) as counter:
        measure(scenes(images, positions, width), group=group)
    tokens = images * positions
    lloyd = 2 * tokens * width * (clusters + 3) * 20
    seeding = 2 * tokens * width * (clusters + 3)
    separation = 2 * tokens * width * clusters
    spectra = 2 * positions * images**2 * width + 4 * tokens * positions * width
    left_out = 4 * 16 * 2 * images**2 * width
    assert counter.get_total_flops() < 1.1 * (lloyd + seeding + separation + spectra + left_out)


def test_converged_clusterings_cost_nothing_more():
    generator = torch.Generator().manual_seed(0)
    draws = clustering.seeding_draws(8, 3, generator)
    slow = torch.randn(8, 300, 16, generator=generator)
    mostly_quick = torch.eye(16)[torch.arange(300) % 3].repeat(8, 1, 1)  # three places, found at once
    mostly_quick[0] = slow[0]

    def flops(points):
        with FlopCounterMode(display=False) as counter:
            clustering.kmeans(points, draws)
        return counter.get_total_flops()

    assert flops(mostly_quick) < 0.5 * flops(slow)


def test_regularizer_products_stay_within_their_count(scenes):
    images, positions, width, clusters = 16, 49, 64, 24
    features = scenes(images, positions, width).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        DSERegularizer()(features).backward()
    tokens = images * positions
    kmeans = 2 * tokens * width * (clusters + 3) * (20 + 1 + 1)  # iterations, seeding, last assignment
    separation = 2 * tokens * width * clusters
    dimension = 2 * (2 * tokens * width**2 + width**3)  # Gram matrix; slope of its spectrum
    # Local clusters at worst as large as an image, global ones several times as large as their mean.
    radii = 2 * (2 * tokens * width * positions + 2 * tokens * width * width)
    assert counter.get_total_flops() < 1.1 * (kmeans + separation + dimension + radii)


def test_regularizer_calls_do_not_grow_with_images(scenes):
    def step(features):
        DSERegularizer()(features.requires_grad_()).backward()

    few, many = scenes(64, 9, 8), scenes(512, 9, 8)
    assert _calls(lambda: step(many)) < 1.5 * _calls(lambda: step(few))


def _peak_bytes(work):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=False) as recorded:
        result = work()
    held = peak = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    del result
    return peak


def test_measuring_needs_little_beside_a_copy_of_the_features(scenes):
    features = scenes(256, 64, 384)
    size = features.numel() * 4
    assert (
        _peak_bytes(lambda: measure(features)) < 1.5 * size + 12 * 2**20
    )  # pieces do not grow with the images


def test_regularizer_needs_two_copies_of_the_features(scenes):
    features = scenes(64, 100, 384).requires_grad_()
    size = features.numel() * 4

    def step():
        DSERegularizer()(features).backward()

    assert _peak_bytes(step) < 2 * size + 24 * 2**20
