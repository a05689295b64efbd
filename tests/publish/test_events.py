"""What lies in the event file, read back with TensorBoard's own loader; and what a full disk does."""

import dataclasses
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from dse_monitor.errors import OutputError
from dse_monitor.metric.components import Components
from dse_monitor.publish import encoding, events
from dse_monitor.publish.published import published
from dse_monitor.publish.rebuild import rebuild
from dse_monitor.runs.record import POINT_COLUMNS, SCALAR_TAGS, Alert, Evaluation, Settings, Source, to_json

pytestmark = pytest.mark.fast

SETTINGS = Settings(images="0123456789ab", num_images=64)


def evaluation(seq, *, epoch=None, status="scored", path=None, step=None, **facts):
    epoch = float(seq) if epoch is None else epoch
    parts = Components(
        m_inter=1.0 + 0.01 * epoch,
        m_intra_image=1.5,
        m_intra_batch=1.25,
        m_dim=0.5 - 0.02 * epoch,
        m_dim_se=0.001,
        separability_se=0.002,
        separability_dim_cov=-1e-6,
        images=64,
    )
    return Evaluation(
        status=status,
        source=Source(path=path or f"checkpoint{epoch:g}.pth", epoch=epoch, step=step, mtime=1e9 + epoch),
        settings=SETTINGS,
        components=parts if status == "scored" else None,
        seconds={"total": 2.5},
        wall_time=1.7e9 + seq,
        seq=seq,
        **facts,
    )


def alert(seq, status="firing"):
    return Alert(kind="degradation", status=status, key=f"run/{seq}", seq=seq, wall_time=1.7e9)


def write(folder, records, alerts=(), state=None):
    with events.EventWriter(folder) as writer:
        for record in records:
            writer.add_evaluation(record)
        for change in alerts:
            writer.add_alert(change)
        if state is not None:
            writer.set_state(state)


def read(folder):
    """Every (tag, step, value) of a folder, through TensorBoard."""
    found = []
    for path in sorted(folder.glob("*tfevents*")):
        for event in EventFileLoader(str(path)).Load():
            found += [(value.tag, event.step, value) for value in event.summary.value]
    return found


def rows(folder):
    tensors = [value.tensor for tag, _, value in read(folder) if tag.startswith("dse/point/")]
    layout = struct.Struct(f"<{len(POINT_COLUMNS)}d")
    return [dict(zip(POINT_COLUMNS, layout.unpack(t.tensor_content), strict=True)) for t in tensors]


def test_point_holds_the_numbers_in_double_precision(tmp_path):
    record = evaluation(7, epoch=1 / 3, step=123)
    write(tmp_path, [record])
    (row,) = rows(tmp_path)
    assert row["epoch"] == 1 / 3
    assert row["m_inter"] == record.components.m_inter
    assert row["separability_dim_cov"] == -1e-6
    assert (row["seq"], row["step"], row["status"], row["seconds"]) == (7, 123, 0, 2.5)
    assert f"{int(row['settings']):012x}" == SETTINGS.fingerprint


def test_unknown_numbers_are_nan_and_zero_stays_zero(tmp_path):
    write(tmp_path, [evaluation(1, epoch=0.0)])
    (row,) = rows(tmp_path)
    assert row["epoch"] == 0.0
    assert math.isnan(row["step"])
    assert math.isnan(row["m_inter_se"])


@pytest.mark.parametrize("status", ["failed", "invalid"])
def test_refused_checkpoint_is_a_point_without_components_and_says_why(tmp_path, status):
    write(tmp_path, [evaluation(1, status=status, reason="cut short", error="IncompleteCheckpoint")])
    (row,) = rows(tmp_path)
    assert row["status"] == {"failed": 1, "invalid": 2}[status]
    assert math.isnan(row["m_inter"])
    (meta,) = [
        json.loads(v.tensor.string_val[0]) for tag, _, v in read(tmp_path) if tag.startswith("dse/meta/")
    ]
    assert (meta["status"], meta["reason"], meta["error"]) == (status, "cut short", "IncompleteCheckpoint")
    assert not [tag for tag, _, _ in read(tmp_path) if tag in SCALAR_TAGS]


def test_ten_points_share_a_tag_named_after_the_first(tmp_path):
    write(tmp_path, [evaluation(seq) for seq in range(100, 125)])
    tags = [tag for tag, _, _ in read(tmp_path) if tag.startswith("dse/point/")]
    assert [tags.count(f"dse/point/{k}") for k in (100, 110, 120)] == [10, 10, 5]
    assert tags == sorted(tags)


def test_metadata_of_a_tag_is_on_its_first_value_and_names_a_data_class(tmp_path):
    write(tmp_path, [evaluation(seq) for seq in range(1, 13)], [alert(20)], {"n_written": 12})
    first = {}
    for tag, _, value in read(tmp_path):
        first.setdefault(tag, value.metadata)
    assert {
        m.plugin_data.plugin_name for t, m in first.items() if t.startswith(("dse/point", "dse/meta"))
    } == {"dse"}
    assert first["dse/state"].plugin_data.plugin_name == "dse_state"
    assert first["dse/score"].plugin_data.plugin_name == "scalars"
    assert all(metadata.data_class for metadata in first.values())


def test_steps_grow_even_where_sequence_numbers_do_not(tmp_path):
    write(
        tmp_path,
        [evaluation(5, epoch=1), evaluation(5, epoch=2), evaluation(3, epoch=3), evaluation(9, epoch=4)],
    )
    steps = [step for tag, step, _ in read(tmp_path) if tag.startswith("dse/point/")]
    assert steps == [5, 6, 7, 9]


def test_scalars_carry_the_true_step_and_the_lambda_of_their_time(tmp_path):
    records = [evaluation(seq, step=seq * 100) for seq in (1, 2, 3)]
    write(tmp_path, records)
    found = [(step, value.tensor.float_val[0]) for tag, step, value in read(tmp_path) if tag == "dse/score"]
    assert [step for step, _ in found] == [100, 200, 300]
    # separability rises by 0.01, m_dim falls by 0.02 per epoch: lambda is 0.5 once three points tell
    expected = [records[0].components.dse(1), records[1].components.dse(1), records[2].components.dse(0.5)]
    assert [score for _, score in found] == pytest.approx(expected, rel=1e-6)  # float32


def test_event_of_a_record_without_a_time_is_readable(tmp_path):
    write(tmp_path, [dataclasses.replace(evaluation(1), wall_time=math.inf)])
    (path,) = tmp_path.glob("*tfevents*")
    assert all(math.isfinite(event.wall_time) for event in EventFileLoader(str(path)).Load())


def test_a_record_without_a_sequence_number_is_refused(tmp_path):
    writer = events.EventWriter(tmp_path)
    with pytest.raises(ValueError, match="sequence number"):
        writer.add_evaluation(evaluation(0))
    with pytest.raises(ValueError, match="sequence number"):
        writer.add_alert(alert(0))


def test_nothing_is_created_before_something_is_written(tmp_path):
    events.EventWriter(tmp_path / "dse").close()
    assert not (tmp_path / "dse").exists()


def test_flushed_events_can_be_read_while_the_writer_lives(tmp_path):
    writer = events.EventWriter(tmp_path)
    writer.add_evaluation(evaluation(1))
    writer.flush()
    assert len(rows(tmp_path)) == 1
    writer.close()


def test_restart_opens_new_tags_and_catches_up_what_was_not_published(tmp_path):
    records = [evaluation(seq) for seq in range(1, 8)]
    write(tmp_path, records[:4], [alert(2)])
    with events.EventWriter(tmp_path) as writer:
        assert writer.catch_up(records, [alert(2), alert(6)]) == 4
    assert sorted(row["seq"] for row in rows(tmp_path)) == [1, 2, 3, 4, 5, 6, 7]
    assert published(tmp_path).alerts == {(2, "run/2"), (6, "run/6")}
    assert {tag for tag, _, _ in read(tmp_path) if tag.startswith("dse/point/")} == {
        "dse/point/1",
        "dse/point/5",
    }


def test_steps_grow_over_a_restart_even_where_sequence_numbers_fell(tmp_path):
    """TensorBoard would take a used tag with an older step for a restart and forget points."""
    write(tmp_path, [evaluation(9, epoch=1), evaluation(3, epoch=2)])  # the second stands at step 10
    with events.EventWriter(tmp_path) as writer:
        writer.catch_up([evaluation(10, epoch=3)], [])
    steps = [(tag, step) for tag, step, _ in read(tmp_path) if tag.startswith("dse/point/")]
    assert steps == [("dse/point/9", 9), ("dse/point/9", 10), ("dse/point/11", 11)]


@pytest.mark.parametrize("cut", [1, 3, 15, 200])
def test_torn_last_event_counts_as_missing(tmp_path, cut):
    write(tmp_path, [evaluation(1)])
    (path,) = tmp_path.glob("*tfevents*")
    whole = path.read_bytes()
    with events.EventWriter(tmp_path / "other") as writer:
        writer.add_evaluation(evaluation(1))
        writer.add_evaluation(evaluation(2, status="failed"))  # the last event holds its point
    (longer,) = (tmp_path / "other").glob("*tfevents*")
    path.write_bytes(longer.read_bytes()[:-cut])
    assert len(path.read_bytes()) > len(whole)
    assert published(tmp_path).evaluations == {1}


def test_foreign_or_damaged_event_files_do_not_stop_a_restart(tmp_path):
    write(tmp_path, [evaluation(1)])
    (tmp_path / "events.out.tfevents.9999999999.zeros").write_bytes(b"\0" * 300)
    (tmp_path / "events.out.tfevents.9999999998.noise").write_bytes(bytes(range(256)) * 4)
    assert published(tmp_path).evaluations == {1}


FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_events import SETTINGS, alert, evaluation, rows
from dse_monitor.errors import OutputError
from dse_monitor.publish import encoding, events
from dse_monitor.publish.published import published
from dse_monitor.publish.rebuild import rebuild
folder = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = events.EventWriter(folder)
records = [evaluation(seq) for seq in range(1, 41)]
for record in records[:5]:
    writer.add_evaluation(record)
writer.flush()
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (max(p.stat().st_size for p in folder.iterdir()) + 700, hard))
errors = 0
for record in records[5:30]:
    writer.add_evaluation(record)
    try:
        writer.flush()
    except OutputError as error:
        errors += 1
        message = str(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
try:
    writer.reopen(records[:30], [alert(50)], {"n_written": 30})
except OutputError:
    errors += 10
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
dead = not writer.alive
writer.reopen(records[:30], [alert(50)], {"n_written": 30})
for record in records[30:]:
    writer.add_evaluation(record)
writer.close()
print(json.dumps([errors, message, dead, writer.alive, [row["seq"] for row in rows(folder)]]))
"""


def test_full_disk_is_said_once_and_nothing_is_lost_or_doubled_after_it(tmp_path):
    """A real limit on the size of files, in a process of its own."""
    folder = tmp_path / "dse"
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder), here], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    errors, message, dead, alive, written = json.loads(done.stdout)
    assert errors == 11  # once when the disk filled, once (counted ten) when it was tried again too early
    assert str(folder) in message
    assert dead
    assert alive
    assert sorted(written) == list(range(1, 41))


def test_unwritable_folder_is_an_output_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    writer = events.EventWriter(tmp_path / "file" / "dse")
    writer.add_evaluation(evaluation(1))
    with pytest.raises(OutputError, match="file/dse"):
        writer.flush()
    writer.add_evaluation(evaluation(2))
    writer.flush()
    writer.close()


def test_rebuild_replaces_all_files_by_one_with_the_same_content(tmp_path):
    records = [evaluation(seq) for seq in range(1, 26)]
    write(tmp_path, records[:12])
    write(tmp_path, records[12:], [alert(30)])
    (tmp_path / "records.jsonl").write_text("kept")
    before = [row["seq"] for row in rows(tmp_path)]
    target = rebuild(tmp_path, reversed(records), [alert(30)], {"n_written": 25})
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([target.name, "records.jsonl"])
    assert [row["seq"] for row in rows(tmp_path)] == before
    assert published(tmp_path).alerts == {(30, "run/30")}


def test_failed_rebuild_leaves_the_old_files_and_no_draft(tmp_path, monkeypatch):
    write(tmp_path, [evaluation(1)])
    before = sorted(p.name for p in tmp_path.iterdir())

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OutputError, match="No space left"):
        rebuild(tmp_path, [evaluation(1)], [], {})
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_the_last_state_wins_and_is_valid_json(tmp_path):
    with events.EventWriter(tmp_path, clock=lambda: 100.0) as writer:  # a clock that stands still
        writer.set_state({"n_written": 1})
        writer.set_state({"n_written": 2, "run": "ünïcode \ud800"})
    states = [(step, v.tensor.string_val[0]) for tag, step, v in read(tmp_path) if tag == "dse/state"]
    assert [step for step, _ in states] == [100_000_000, 100_000_001]
    assert json.loads(states[-1][1])["n_written"] == 2


def test_metadata_repeats_no_number_of_the_row_and_keeps_the_rest():
    record = evaluation(3, map_file="media/3.png", companions={"rankme": 12.5}, reason="")
    meta = encoding.metadata(record)
    assert meta["path"] == "checkpoint3.pth"
    assert meta["map_file"] == "media/3.png"
    assert meta["companions"] == {"rankme": 12.5}
    assert meta["settings"] == SETTINGS.fingerprint
    assert meta["images"] == 64
    assert not {"epoch", "step", "mtime", "components"} & set(meta)
    assert set(to_json(record)["source"]) - set(meta) == {"epoch", "step", "mtime"}
