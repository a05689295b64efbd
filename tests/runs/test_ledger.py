"""The ledger keeps every fact through crashes, torn lines and full disks."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading

import pytest

from dse_monitor.errors import OutputError, RunError
from dse_monitor.runs import ledger as module
from dse_monitor.runs.ledger import Ledger, next_sequence, read
from dse_monitor.runs.record import Alert, to_json

pytestmark = pytest.mark.fast

KEY = [11, 1000, 5, 6, 1]  # the version of a file: inode, size, times, links


def _write(folder, evaluation, count):
    ledger = Ledger.open(folder, clock=lambda: 5.0)
    for number in range(count):
        ledger.append_evaluation(
            evaluation(f"c{number}.pth", epoch=float(number), seq=number + 1), {"key": KEY}
        )
    ledger.close()


def test_what_is_appended_is_read_back(tmp_path, evaluation):
    ledger = Ledger.open(tmp_path / "dse", clock=lambda: 5.0)
    scored, failed = evaluation("a.pth", seq=7), evaluation("b.pth", status="failed", seq=8)
    alert = Alert(kind="degradation", status="firing", run="exp1", key="k", seq=9)
    ledger.append("watch", {"pid": 1})
    ledger.append_evaluation(scored, {"key": KEY})
    ledger.append_evaluation(failed, {"key": KEY})
    ledger.append("alias", {"path": "last.pth", "of": 7})
    ledger.append_alert(alert)
    ledger.close()
    view = read(tmp_path / "dse")
    assert to_json(view.evaluations[0].components) == to_json(scored.components)  # NaN equals nothing
    assert view.evaluations[0].source.aliases == ("last.pth",)
    assert to_json(view.evaluations[1]) == to_json(failed)
    assert view.alerts[0].key == "k"
    assert [fact.kind for fact in view.facts] == ["watch", "alias"]
    assert view.warnings == ()


def test_every_line_is_json_with_schema_kind_and_time(tmp_path, evaluation):
    _write(tmp_path, evaluation, 2)
    for line in (tmp_path / "records.jsonl").read_text().splitlines():
        fact = json.loads(line)
        assert (fact["v"], fact["kind"], fact["t"]) == (1, "scored", 5.0)


def test_last_line_cut_at_any_byte_is_set_aside_and_the_rest_kept(tmp_path, evaluation):
    _write(tmp_path, evaluation, 2)
    path = tmp_path / "records.jsonl"
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for cut in range(start + 1, len(whole)):
        path.write_bytes(whole[:cut])
        if cut < len(whole) - 1:
            assert [e.seq for e in read(tmp_path).evaluations] == [1]  # a reader ignores it
        ledger = Ledger.open(tmp_path)
        ledger.append_evaluation(evaluation("new.pth", seq=99), {})
        ledger.close()
        kept = [1, 99] if cut < len(whole) - 1 else [1, 2, 99]
        view = read(tmp_path)
        assert [e.seq for e in view.evaluations] == kept, cut
        assert view.warnings == ()
        aside = tmp_path / f"records.jsonl.torn-{start}"
        assert aside.exists() == (cut < len(whole) - 1)
        if aside.exists():
            assert aside.read_bytes() == whole[start:cut]
            aside.unlink()


def test_last_line_of_zero_bytes_is_removed(tmp_path, evaluation):
    _write(tmp_path, evaluation, 1)
    with (tmp_path / "records.jsonl").open("ab") as stream:
        stream.write(bytes(5000))
    Ledger.open(tmp_path).close()
    view = read(tmp_path)
    assert len(view.evaluations) == 1
    assert view.warnings == ()


def test_unreadable_line_in_the_middle_is_skipped_and_named(tmp_path, evaluation):
    _write(tmp_path, evaluation, 3)
    path = tmp_path / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"components"', b'"compon')
    path.write_bytes(b"".join(lines))
    Ledger.open(tmp_path).close()
    view = read(tmp_path)
    assert [e.seq for e in view.evaluations] == [1, 3]
    assert "line 2" in view.warnings[0]
    assert path.read_bytes() == b"".join(lines)  # nothing is thrown away


@pytest.mark.parametrize("key", ["[1,2]", "[1,2,3,4,5,6,7]", '["a",2,3,4,5]', "7", '"text"'])
def test_line_with_an_impossible_version_of_its_file_is_skipped_and_named(tmp_path, evaluation, key):
    _write(tmp_path, evaluation, 1)
    with (tmp_path / "records.jsonl").open("a") as stream:
        stream.write('{"v":1,"kind":"crash","t":1.0,"path":"a.pth","key":' + key + ',"reason":"x"}\n')
    view = read(tmp_path)
    assert len(view.evaluations) == 1
    assert view.facts == ()
    assert "line 2" in view.warnings[0]


def test_record_of_a_newer_version_is_refused(tmp_path):
    (tmp_path / "records.jsonl").write_text('{"v":2,"kind":"scored","t":1,"novel":true}\n')
    with pytest.raises(RunError, match="newer"):
        read(tmp_path)


def test_folder_without_a_ledger_is_explained(tmp_path):
    with pytest.raises(RunError, match="nothing was watched there yet"):
        read(tmp_path)


def test_threads_do_not_mix_their_lines(tmp_path):
    ledger = Ledger.open(tmp_path)
    threads = [
        threading.Thread(
            target=lambda n=n: [ledger.append("delivery", {"n": n, "text": "x" * 5000}) for _ in range(20)]
        )
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.close()
    assert sorted(fact.data["n"] for fact in read(tmp_path).facts) == sorted([0, 1, 2, 3] * 20)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_refused_lines_wait_in_memory_and_keep_their_order(tmp_path, monkeypatch, evaluation, number):
    ledger = Ledger.open(tmp_path)
    ledger.append("watch", {})

    def refuse(descriptor, line):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "write", refuse)
        assert not ledger.append_evaluation(evaluation("a.pth", seq=1), {})
        assert not ledger.append("lost", {"path": "b.pth"})
        assert ledger.pending == 2
        assert ledger.error is not None
        assert ledger.error.errno == number
    assert ledger.retry()
    assert ledger.pending == 0
    assert ledger.error is None
    ledger.close()
    assert [fact.kind for fact in Ledger.open(tmp_path).facts()] == ["watch", "scored", "lost"]


def test_full_disk_leaves_no_half_line(tmp_path):
    """A real limit: the kernel cuts the write short at 4,096 bytes."""
    code = """
import resource, signal, sys
from dse_monitor.runs.ledger import Ledger
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ledger = Ledger.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
written = [ledger.append("lost", {"path": "x" * 1000}) for _ in range(6)]
assert written == [True] * 3 + [False] * 3, written
assert ledger.pending == 3
assert sum(1 for _ in ledger.facts()) == 3
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
assert ledger.retry()
assert sum(1 for _ in ledger.facts()) == 6
"""
    assert hasattr(resource, "RLIMIT_FSIZE")
    assert hasattr(signal, "SIGXFSZ")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_more_than_the_limit_waits_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PENDING_LIMIT", 3)
    ledger = Ledger.open(tmp_path)
    monkeypatch.setattr(module.os, "write", lambda *_: 0)
    for _ in range(3):
        assert not ledger.full
        ledger.append("lost", {})
    assert ledger.full


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "dse").write_text("a file where the folder should be")
    with pytest.raises(OutputError, match="dse"):
        Ledger.open(tmp_path / "dse")


def test_removed_or_replaced_file_is_noticed(tmp_path):
    ledger = Ledger.open(tmp_path)
    assert not ledger.moved
    ledger.path.rename(tmp_path / "old")
    assert ledger.moved
    ledger.path.touch()
    assert ledger.moved


def test_sequence_numbers_grow_when_the_clock_goes_back():
    first = next_sequence(0, now=2000.0)
    assert first == 2_000_000_000
    assert next_sequence(first, now=1000.0) == first + 1


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["components"].update(m_dim="a"),
        lambda record: record["source"].update(epoch="7"),
    ],
)
def test_a_record_whose_numbers_are_none_is_skipped_with_a_warning(tmp_path, evaluation, change):
    ledger = Ledger.open(tmp_path / "dse")
    ledger.append_evaluation(evaluation("a.pth", seq=7), {"key": KEY})
    ledger.append_evaluation(evaluation("b.pth", seq=8), {"key": KEY})
    ledger.close()
    first, second = (tmp_path / "dse" / "records.jsonl").read_text().splitlines()
    data = json.loads(first)
    change(data["evaluation"])
    (tmp_path / "dse" / "records.jsonl").write_text(f"{json.dumps(data)}\n{'[' * 100_000}\n{second}\n")
    view = read(tmp_path / "dse")
    assert [record.seq for record in view.evaluations] == [8]
    assert len(view.warnings) == 2
