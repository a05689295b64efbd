"""Chance that leaves no trace: the global random generators under a key, and as they were afterwards."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed torch's, Python's and numpy's global generators from a key, and put them back afterwards.

    Augmentation libraries draw from these generators. A key such as (seed, epoch, index) makes a view a pure
    function of itself: independent of workers, of the order of loading and of interruptions.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little") >> 1
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()
    torch.default_generator.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)
    try:
        yield
    finally:
        torch.random.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])
