"""Nothing that an accelerator computes is read back in the middle: meta tensors have no values to read.

On the meta device ``.item()``, branching on a tensor and shapes that depend on values raise, so what runs
through never waits for the device. The branches taken are those of an accelerator, since it is not a CPU.
"""

import pytest
import torch

from dse_monitor.metric import clustering, terms
from dse_monitor.metric.measurement import as_tokens


def _on_meta(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta")


def test_meta_tensors_refuse_to_be_read():
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(_on_meta(3).any())


def test_clustering_reads_nothing_back():
    found = clustering.kmeans(_on_meta(4, 30, 8), _on_meta(4, 5, dtype=torch.float64))
    assert found.labels.shape == (4, 30)
    assert found.centroids.shape == (4, 5, 8)
    assert clustering.assign(_on_meta(4, 30, 8), found.centroids).shape == (4, 30)


def test_terms_read_nothing_back():
    tokens, _ = as_tokens(_on_meta(6, 30, 8), normalize=True)
    assert terms.feature_scale(tokens).value.shape == ()
    labels = _on_meta(6, 30, dtype=torch.int64)
    assert terms.offsets_to_nearest_other(tokens, labels, _on_meta(6, 5, 8)).shape == (6, 30, 8)
    assert terms.effective_dimension(tokens).shape == (6,)
