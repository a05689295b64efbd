import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dse_monitor.metric.components import Components
from dse_monitor.runs.record import Evaluation, Settings, Source

CURVES = Path(__file__).parents[1] / "data" / "curves" / "paper_figure.json"
SETTINGS = Settings(images="a", num_images=8)


def make_evaluation(
    separability=0.0,
    m_dim=0.5,
    *,
    epoch=None,
    step=None,
    seq=None,
    se=float("nan"),
    status="scored",
    path="",
    content="",
    reason="",
    wall_time=0.0,
):
    position = epoch if epoch is not None else step if step is not None else 0
    seq = int(position * 1000) + 1 if seq is None else seq
    components = Components(
        m_inter=float(separability),
        m_intra_image=0.0,
        m_intra_batch=0.0,
        m_dim=float(m_dim),
        separability_se=se,
        m_dim_se=0.0,
        separability_dim_cov=0.0,
    )
    return Evaluation(
        status=status,
        source=Source(path=path or f"c{position}.pth", epoch=epoch, step=step, content=content or f"{seq}"),
        settings=SETTINGS,
        components=components if status == "scored" else None,
        reason=reason,
        seq=seq,
        wall_time=wall_time,
    )


@pytest.fixture
def evaluation():
    """A function that makes an Evaluation from a few numbers."""
    return make_evaluation


@pytest.fixture
def run_of():
    """A function that makes the evaluations of a run, epochs 10, 20, ..., from its DSE (M_dim constant)."""

    def make(dse, se=float("nan"), first=10, every=10):
        return [make_evaluation(v, epoch=first + every * k, se=se) for k, v in enumerate(dse)]

    return make


@pytest.fixture(scope="session")
def published():
    """The published curves by method: epochs, DSE and mIoU, each rescaled to [0, 1]."""
    curves = json.loads(CURVES.read_text())
    return {
        name: {key: np.array(curve[key], float) for key in ("epoch", "dse", "miou")}
        for name, curve in curves.items()
        if not name.startswith("_")
    }


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that nobody signed but itself, and its key: two paths."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl program to make a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    paths = folder / "certificate.pem", folder / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run(command, check=True, capture_output=True)
    return paths
