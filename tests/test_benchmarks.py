"""The scripts that need machines of their own still run here, at sizes that say nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.slow
def test_gpu_script_prints_every_row_on_a_cpu():
    sizes = "--images 8 --released-images 8 --evaluated 8 --batch 2 --repeats 1"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", *sizes.split()]
    done = subprocess.run(
        [*command, "--archs", "vit_tiny_patch16_224"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for row in (
        "times faster than that",
        "largest difference from the CPU",
        "evaluation / forward",
        "regulariser both ways",
        "with the term",
    ):
        assert row in done.stdout


def test_growth_is_the_exponent_between_the_largest_sizes(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scaling

    assert scaling.growth({10: 7.0, 100: 1.0, 1000: 10.0}) == pytest.approx(1.0)
    assert scaling.growth({10: 1.0, 100: 1e4}) == pytest.approx(4.0)


def test_scaling_draws_and_keeps_what_it_measured(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scaling

    monkeypatch.setattr(scaling, "RESULTS", tmp_path / "scaling.csv")
    monkeypatch.setattr(scaling, "DRAWING", tmp_path / "scaling.png")
    rows = [("metric", "images", size, "metric, s", 0.1 * size) for size in (1, 10, 100)]
    rows += [("run", "checkpoints", size, "tab: zoom, ms", 3.0) for size in (10, 100)]
    scaling.write(rows)
    assert scaling.read() == rows
    scaling.draw(scaling.read())
    assert (tmp_path / "scaling.png").stat().st_size > 1000


def test_a_backlog_is_judged_in_bursts_by_the_whole_watcher(monkeypatch, tmp_path):
    """A count that no load disturbs: judged as each comes, sixty checkpoints would be judged 1,830 times."""
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent))
    from benchmarks import backlog
    from dse_monitor.alerts import trace

    judge, looks = trace.judge, []

    def count(*given):
        looks.append(len(given[0]))
        return judge(*given)

    monkeypatch.setattr(trace, "judge", count)
    backlog.work_off(tmp_path / "run", 60)
    assert 60 <= len(looks) < 6 * 60
    assert looks[-1] == 60  # in the end all of them were looked at
