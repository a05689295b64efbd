"""Checkpoints at places of one's choice, for tests of order and axis."""

import math

from hypothesis import strategies as st

from dse_monitor.metric.components import Components
from dse_monitor.runs.record import Evaluation, Settings, Source

HELD_OUT = Settings(images="f" * 12, num_images=64)


def measured(
    seq,
    epoch=None,
    step=None,
    *,
    time=None,
    path=None,
    content=None,
    dse=None,
    m_dim=None,
    status="scored",
):
    """One checkpoint; its time, name and weights are its own unless given. m_dim 0 leaves lambda no part."""
    parts = Components(
        m_inter=math.sin(seq) if dse is None else dse,
        m_intra_image=0.0,
        m_intra_batch=0.0,
        m_dim=0.5 + 0.1 * math.cos(3 * seq) if m_dim is None else m_dim,
        m_dim_se=0.001,
        separability_se=0.004,
        separability_dim_cov=0.0,
    )
    source = Source(
        path=path or f"c{seq}.pth",
        content=f"{seq:064x}" if content is None else content,
        mtime=1e9 + seq if time is None else time,
        epoch=epoch,
        step=step,
    )
    scored = status == "scored"
    return Evaluation(
        status=status,
        source=source,
        settings=HELD_OUT if scored else None,
        components=parts if scored else None,
        seq=seq,
    )


@st.composite
def runs(draw, size=12):
    """Runs of few names, weights, places and times: everything ties now and then."""
    known_epochs = draw(st.sampled_from([(None,), (0, 1, 2), (None, 0, 1, 2, 0.5), tuple(range(20))]))
    known_steps = draw(st.sampled_from([(None,), (0, 5, 10, 20), (None, 0, 5, 10, 15, 20)]))
    own = draw(st.booleans())  # names and weights are each checkpoint's own
    found = []
    for seq in range(1, draw(st.integers(0, size)) + 1):
        names = (f"{seq}",) if own else ("a.pth", "b.pth", "recovery-0-5.pth.tar", f"{seq}")
        weights = (f"{seq:064x}",) if own else ("", "aa", "bb", f"{seq:064x}")
        found.append(
            measured(
                10 * seq,
                draw(st.sampled_from(known_epochs)),
                draw(st.sampled_from(known_steps)),
                time=1e9 + draw(st.integers(0, 6)),
                path=draw(st.sampled_from(names)),
                content=draw(st.sampled_from(weights)),
                status=draw(st.sampled_from(["scored"] * 6 + ["failed", "invalid"])),
            )
        )
    return found
