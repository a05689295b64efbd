"""Fixtures of the watcher's tests; what they are made of is in watch_fakes.py, which worker scripts import as
well."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from watch_fakes import FakeClock, Watching, make_evaluation, write_checkpoint


@pytest.fixture
def fake_clock():
    return FakeClock()


@pytest.fixture
def evaluation():
    return make_evaluation


@pytest.fixture
def checkpoint():
    return write_checkpoint


@pytest.fixture
def watching(fake_clock):
    """Makes monitors under the fake clock; ends them after the test."""
    with contextlib.ExitStack() as stack:

        def make(*runs, **options):
            return stack.enter_context(Watching(fake_clock, *runs, **options))

        yield make
