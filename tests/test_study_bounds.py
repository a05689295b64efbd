"""Floor and ceiling of the study's mIoU."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

bounds = pytest.importorskip("benchmarks.study_bounds")


@pytest.fixture(autouse=True)
def weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_normalisation_settles_on_real_images_and_weights_stay():
    model = bounds.build(bounds.NETWORKS[-1], 64)
    before = copy.deepcopy(dict(model.named_parameters()))
    images = 3 + torch.randn(64, 3, 64, 64)
    bounds.settle(model, images)
    first = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    batches = images.split(bounds.BATCH)
    expected = torch.stack([model.conv1(part).mean((0, 2, 3)) for part in batches]).mean(0)
    assert first.running_mean is not None
    assert torch.allclose(first.running_mean, expected, atol=1e-5)
    assert first.momentum == 0.1
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_fixed_positions_replace_timms():
    plain, fixed = (bounds.build(network, 64) for network in bounds.NETWORKS[:2])
    assert float(fixed.pos_embed.detach().abs().max()) == 1.0  # a cosine of zero
    assert float(plain.pos_embed.detach().abs().max()) < 0.2


def test_labels_teach_the_network_what_random_weights_do_not_tell():
    rng = np.random.default_rng(0)
    masks = np.kron(rng.integers(0, 2, (48, 8, 8)), np.ones((8, 8), int)).astype(np.int32)
    # Stripes along or across, in noise: a question of texture, the mean colour says nothing.
    waves = np.sin(np.arange(64) * 1.5)
    stripes = np.where(masks == 1, waves[None, :, None], waves[None, None, :])
    noisy = stripes[:, None] + rng.normal(0, 1.5, (48, 3, 64, 64))
    images = torch.from_numpy(noisy).float()
    train, test = bounds.Scenes(images[:32], masks[:32]), bounds.Scenes(images[32:], masks[32:])
    model = bounds.build(bounds.NETWORKS[0], 64)
    bounds.settle(model, train.images)
    random = float(bounds.score(model, test)[0])
    bounds.fit(model, train, epochs=40, seed=0)
    assert float(bounds.score(model, test)[0]) > random + 0.1
