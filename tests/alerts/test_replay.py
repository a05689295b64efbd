import json
import math
from pathlib import Path

import numpy as np
import pytest

from dse_monitor.alerts.parameters import Rules
from dse_monitor.alerts.replay import replay
from dse_monitor.errors import RunError
from dse_monitor.metric.components import Components
from dse_monitor.runs import record
from dse_monitor.runs.ledger import Ledger
from dse_monitor.runs.record import Evaluation, Settings, Source

pytestmark = pytest.mark.fast

CURVES = Path(__file__).parents[1] / "data" / "curves" / "paper_figure.json"


def published(name):
    curve = json.loads(CURVES.read_text())[name]
    return curve["epoch"], curve["dse"]


def write_csv(path, epoch, dse, *, se=None):
    lines = ["epoch,dse" if se is None else "epoch,dse,dse_se"]
    lines += [f"{e},{d}" if se is None else f"{e},{d},{se}" for e, d in zip(epoch, dse, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("se", [None, 0.01])
@pytest.mark.parametrize("name", ["DINO", "BYOL", "iBOT", "Mugs"])
def test_published_runs_that_degrade_fire(name, se, tmp_path):
    found = replay(write_csv(tmp_path / "run.csv", *published(name), se=se)).to_json()
    assert [a["kind"] for a in found["alerts"] if a["status"] == "firing"][:1] == ["degradation"]
    assert all(a["cause"] == "" and a["shares"] == {} for a in found["alerts"])


@pytest.mark.parametrize("se", [None, 0.01])
@pytest.mark.parametrize("name", ["DenseCL", "SimSiam", "VICRegL", "MAE"])
def test_published_runs_that_stay_healthy_are_silent(name, se, tmp_path):
    assert replay(write_csv(tmp_path / "run.csv", *published(name), se=se)).alerts == ()


def test_best_and_candidates_are_those_of_the_released_rule(tmp_path):
    epoch, dse = published("DINO")
    found = replay(write_csv(tmp_path / "run.csv", epoch, dse)).to_json()
    local = [i for i in range(len(dse)) if dse[i] == max(dse[max(0, i - 2) : i + 3])]
    expected = [epoch[i] for i in sorted(local, key=lambda i: (-dse[i], i))[:3]]
    assert found["candidates"] == expected
    assert found["best"] == expected[0] == 800
    assert found["before_alarm"] == [30]


def test_a_fall_that_recovers_is_resolved(tmp_path):
    found = replay(write_csv(tmp_path / "run.csv", *published("DINO"))).to_json()
    assert [a["status"] for a in found["alerts"]][-1] == "resolved"
    assert found["alerts"][0]["epoch"] < found["alerts"][-1]["epoch"]


def test_an_alarm_never_depends_on_what_comes_after(tmp_path):
    epoch, dse = published("iBOT")
    whole = replay(write_csv(tmp_path / "whole.csv", epoch, dse)).to_json()["alerts"][0]
    until = epoch.index(whole["epoch"]) + 1
    part = replay(write_csv(tmp_path / "part.csv", epoch[:until], dse[:until])).to_json()["alerts"]
    assert [a["epoch"] for a in part] == [whole["epoch"]]
    assert replay(write_csv(tmp_path / "less.csv", epoch[: until - 1], dse[: until - 1])).alerts == ()


def test_rules_can_be_tuned(tmp_path):
    path = write_csv(tmp_path / "run.csv", *published("iBOT"))
    fired = [replay(path, Rules(margin=margin)).to_json()["alerts"][0]["epoch"] for margin in (0.1, 0.2, 0.4)]
    assert fired == sorted(set(fired))
    assert replay(path, Rules(margin=0.9)).alerts == ()


def test_json_is_valid_and_text_fits_the_terminal(tmp_path):
    found = replay(write_csv(tmp_path / "run.csv", *published("Mugs")))
    json.loads(json.dumps(found.to_json(), allow_nan=False))
    text = str(found)
    assert max(len(line) for line in text.replace(str(tmp_path), "").splitlines()) <= 100
    assert "before the first alarm: 80" in text


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "is empty"),
        ("epoch,dse\n", "holds no checkpoint"),
        ("epoch,score\n1,2\n", "no column 'dse'"),
        ("1,2\n3,4\n", "no column 'epoch'"),
        ("epoch,dse,dse\n1,2,3\n", "'dse' twice"),
        ("epoch,dse\n1,0.5\n2\n", "line 3: 1 values for 2 columns"),
        ("epoch,dse\n1,high\n", "line 2: dse is 'high'; expected a number"),
        ("epoch,dse\n1,nan\n", "line 2: dse is nan; expected a finite number"),
        ("epoch,dse\ninf,1\n", "line 2: epoch is inf"),
        ("epoch,dse\n-1,1\n", "expected epochs done"),
        ("epoch,dse,dse_se\n1,1,-0.1\n", "dse_se is -0.1; expected a standard error"),
        ("epoch,dse\n\n1,\n", "line 3: dse is ''"),
    ],
)
def test_a_file_that_cannot_be_understood_is_refused_with_its_line(content, complaint, tmp_path):
    (tmp_path / "run.csv").write_text(content)
    with pytest.raises(RunError, match=complaint) as caught:
        replay(tmp_path / "run.csv")
    assert "run.csv" in str(caught.value)


def test_what_is_neither_run_nor_file_is_refused(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        replay(tmp_path / "nothing.csv")
    with pytest.raises(RunError, match="nothing was watched there"):
        replay(tmp_path)
    (tmp_path / "binary.csv").write_bytes(b"\x80\x81\xff\n")
    with pytest.raises(RunError, match="cannot be read as a CSV file"):
        replay(tmp_path / "binary.csv")


def test_spaces_case_byte_order_mark_missing_errors_and_more_columns_are_fine(tmp_path):
    (tmp_path / "run.csv").write_text("\ufeffEpoch, DSE ,miou,dse_se\r\n10, 0.5,1,\r\n20,0.75,1,0.1\r\n")
    found = replay(tmp_path / "run.csv")
    assert found.series.dse.tolist() == [0.5, 0.75]
    assert math.isnan(found.series.dse_se[0])
    assert found.notes == ("column 'miou' is not used",)


def test_a_single_checkpoint_is_its_own_best(tmp_path):
    found = replay(write_csv(tmp_path / "run.csv", [5], [0.1])).to_json()
    assert (found["best"], found["candidates"], found["alerts"]) == (5, [5], [])


def test_rows_may_come_in_any_order(tmp_path):
    epoch, dse = published("iBOT")
    one = replay(write_csv(tmp_path / "a.csv", epoch, dse)).to_json()
    other = replay(write_csv(tmp_path / "b.csv", epoch[::-1], dse[::-1])).to_json()
    assert one == other


def test_a_resumed_run_replaces_the_rows_it_left(tmp_path):
    epoch, dse = [10, 20, 30, 40, 20, 30, 40, 50], [1.0, 2.0, 1.5, 0.5, 2.1, 2.2, 2.3, 2.4]
    found = replay(write_csv(tmp_path / "run.csv", epoch, dse))
    assert found.series.dse.tolist() == [1.0, 2.1, 2.2, 2.3, 2.4]
    assert found.notes == ("3 rows are replaced by later ones of the same or an earlier epoch",)


def watched_run(folder, order):
    """A ledger whose checkpoints lose dimensions from epoch 11 on, recorded in the given order."""
    rise = np.linspace(0.2, 0.7, 10)
    m_dim = np.concatenate([rise, np.linspace(0.65, 0.3, 8)])
    separability = np.concatenate([rise - 1, np.full(8, -0.3)])
    book = Ledger.open(folder / record.OUTPUT_FOLDER)
    for seq, k in enumerate(order, 1):
        components = Components(
            m_inter=float(separability[k]),
            m_intra_image=0.0,
            m_intra_batch=0.0,
            m_dim=float(m_dim[k]),
            separability_se=0.004,
            m_dim_se=0.004,
            separability_dim_cov=0.0,
        )
        source = Source(path=f"c{k + 1}.pth", epoch=k + 1.0, content=str(k))
        settings = Settings(images="a", num_images=8)
        book.append_evaluation(
            Evaluation(status="scored", source=source, settings=settings, components=components, seq=seq), {}
        )
    book.close()
    return folder


@pytest.mark.parametrize("order", [list(range(18)), [17, *range(17)], list(reversed(range(18)))])
def test_a_watched_run_is_replayed_in_training_order(order, tmp_path):
    found = replay(watched_run(tmp_path / "run", order)).to_json()
    [alert] = found["alerts"][:1]
    assert (alert["kind"], alert["status"], alert["cause"], alert["best_path"]) == (
        "degradation",
        "firing",
        "m_dim",
        "c10.pth",
    )
    assert alert["epoch"] == 16  # a fifth of the range is lost at 15, and again at 16
    assert found["best"] == 10


def test_the_output_folder_can_be_named_instead_of_the_run(tmp_path):
    run = watched_run(tmp_path / "run", range(18))
    assert replay(run / record.OUTPUT_FOLDER).to_json()["best"] == 10
