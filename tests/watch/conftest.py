"""A clock that only moves when told, and evaluations without a network."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from dse_monitor.metric.components import Components
from dse_monitor.record import Evaluation, Settings, Source


@dataclass
class FakeClock:
    """Monotonic and wall clock in one; ``sleep`` moves both."""

    now: float = 1000.0
    wall: float = 1_700_000_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.wall

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds


@pytest.fixture
def fake_clock():
    return FakeClock()


SETTINGS = Settings(images="f" * 12, num_images=64)


def make_evaluation(path="checkpoint0009.pth", *, status="scored", content=None, settings=SETTINGS, **facts):
    """An evaluation whose numbers follow from the epoch, so that equal files give equal scores."""
    epoch = facts.pop("epoch", 10.0)
    m_inter = facts.pop("m_inter", 1.0 - 0.001 * (epoch or 0))
    components = Components(
        m_inter=m_inter,
        m_intra_image=0.5,
        m_intra_batch=0.7,
        m_dim=0.6 + 0.0001 * (epoch or 0),
        separability_se=0.004,
        m_dim_se=0.001,
        separability_dim_cov=0.0,
        images=64,
        tokens=196,
        width=384,
    )
    source = Source(
        path=path,
        content=content if content is not None else f"content-of-{path}",
        epoch=epoch,
        epoch_source="field epoch",
        step=facts.pop("step", None),
        layout="dino",
        encoder="teacher",
        arch="vit 384x12, 6 heads, patch 16",
    )
    return Evaluation(
        status=status,
        source=source,
        settings=settings,
        components=components if status == "scored" else None,
        reason=facts.pop("reason", "" if status == "scored" else "no encoder found; give --layout"),
        error=facts.pop("error", "" if status == "scored" else "UnknownLayout"),
        seconds={"total": 6.0},
        **facts,
    )


@pytest.fixture
def evaluation():
    return make_evaluation
