"""A file is evaluated when it is whole and still, and only then."""

import errno
import os

import pytest
from watch_fakes import write_checkpoint

from dse_monitor.checkpoints.archive import check_complete
from dse_monitor.runs.identity import Stamp, look
from dse_monitor.watch.files.settle import ABANDONED_SECONDS, FORESEEN_SECONDS, OVERTAKEN_SECONDS, Settler

pytestmark = pytest.mark.fast

NOTE = "This is a note about the run, and nothing that anybody could take for a checkpoint."


def _settler(root, **options):
    return Settler(root, 2.0, check_complete, **options)


def _wait(settler, clock, seconds, step=0.5):
    found = []
    for _ in range(int(seconds / step)):
        clock.sleep(step)
        found += settler.step(clock.now)
    return found


def test_whole_and_still_file_is_ready_after_the_settle_time(tmp_path, fake_clock):
    path = write_checkpoint(tmp_path / "c.pth")
    settler = _settler(tmp_path)
    settler.add("c.pth", look(path), fake_clock.now)
    assert _wait(settler, fake_clock, 1.5) == []
    (settled,) = _wait(settler, fake_clock, 1.0)
    assert (settled.path, settled.outcome, settled.stamp) == ("c.pth", "ready", look(path))
    assert settler.due() is None


def test_whole_file_is_foreseen_while_it_lies_still(tmp_path, fake_clock):
    path = write_checkpoint(tmp_path / "c.pth")
    settler = Settler(tmp_path, 15.0, check_complete)  # as on a network disk
    settler.add("c.pth", look(path), fake_clock.now)
    added, seen = fake_clock.now, []
    while settler.waiting:
        settler.step(fake_clock.now)
        if settler.foresees(fake_clock.now):
            seen.append(fake_clock.now - added)
        fake_clock.sleep((settler.due() or fake_clock.now) - fake_clock.now)
    assert seen == [15.0 - FORESEEN_SECONDS]


def test_file_written_under_its_own_name_is_foreseen_once_it_lies_still(tmp_path, fake_clock):
    path = write_checkpoint(tmp_path / "c.pth")
    whole = path.read_bytes()
    settler, seen = _settler(tmp_path), []
    for share in (0.3, 0.6, 1.0):
        path.write_bytes(whole[: int(share * len(whole))])
        settler.add("c.pth", look(path), fake_clock.now)
        settler.step(fake_clock.now)
        seen.append(settler.foresees(fake_clock.now))
        fake_clock.sleep(1.0)
    settler.step(fake_clock.now)
    assert [*seen, settler.foresees(fake_clock.now)] == [False, False, False, True]


def test_of_many_waiting_files_one_is_foreseen(tmp_path, fake_clock):
    tested = []

    def complete(path):
        tested.append(path.name)
        return check_complete(path)

    settler = Settler(tmp_path, 2.0, complete)
    for number in range(10):
        path = write_checkpoint(tmp_path / f"c{number}.pth")
        settler.add(path.name, look(path), fake_clock.now)
    assert len(_wait(settler, fake_clock, 3.0)) == 10
    assert len(tested) == 11


def test_half_a_file_is_not_foreseen(tmp_path, fake_clock):
    path = write_checkpoint(tmp_path / "c.pth")
    os.truncate(path, 1000)
    settler = _settler(tmp_path)
    settler.add("c.pth", look(path), fake_clock.now)
    for _ in range(20):
        settler.step(fake_clock.now)
        assert not settler.foresees(fake_clock.now)
        fake_clock.sleep(0.5)


def test_file_written_slowly_is_ready_once_after_its_end(tmp_path, fake_clock):
    whole = write_checkpoint(tmp_path / "whole").read_bytes()
    path = tmp_path / "c.pth"
    settler = _settler(tmp_path)
    outcomes = []
    for end in range(100, len(whole) + 100, 100):
        path.write_bytes(whole[:end])
        settler.add("c.pth", look(path), fake_clock.now)
        outcomes += _wait(settler, fake_clock, 1.0)
    assert outcomes == []
    assert [settled.outcome for settled in _wait(settler, fake_clock, 5)] == ["ready"]


def test_pause_of_the_writer_is_not_the_end(tmp_path, fake_clock):
    whole = write_checkpoint(tmp_path / "whole").read_bytes()
    path = tmp_path / "c.pth"
    path.write_bytes(whole[:-1])
    settler = _settler(tmp_path)
    settler.add("c.pth", look(path), fake_clock.now)
    assert _wait(settler, fake_clock, 600) == []
    assert "not complete" in settler.waiting["c.pth"].reason
    path.write_bytes(whole)
    assert [settled.outcome for settled in _wait(settler, fake_clock, 70)] == ["ready"]


@pytest.mark.parametrize("part", [k / 20 for k in range(20)])
def test_file_cut_short_is_given_up_once_and_never_ready(tmp_path, fake_clock, part):
    whole = write_checkpoint(tmp_path / "whole").read_bytes()
    path = tmp_path / "c.pth"
    path.write_bytes(whole[: max(4, int(part * len(whole)))])
    settler = _settler(tmp_path)
    settler.add("c.pth", look(path), fake_clock.now)
    assert _wait(settler, fake_clock, ABANDONED_SECONDS - 10, step=5) == []
    (settled,) = _wait(settler, fake_clock, 3600, step=5)
    assert settled.outcome == "abandoned"
    assert settled.reason


def test_incomplete_file_that_a_newer_whole_one_overtook_is_given_up_soon(tmp_path, fake_clock):
    whole = write_checkpoint(tmp_path / "b.pth")
    path = tmp_path / "a.pth"
    path.write_bytes(whole.read_bytes()[:-9])
    os.utime(path, (1.0, 1.0))
    settler = _settler(tmp_path)
    for name in ("a.pth", "b.pth"):
        settler.add(name, look(tmp_path / name), fake_clock.now)
    found = _wait(settler, fake_clock, OVERTAKEN_SECONDS + 5)
    assert [(settled.path, settled.outcome) for settled in found] == [
        ("b.pth", "ready"),
        ("a.pth", "abandoned"),
    ]


def test_file_of_no_known_format_is_handed_on_to_be_refused(tmp_path, fake_clock):
    path = tmp_path / "c.pth"
    path.write_text(NOTE)
    settler = _settler(tmp_path)
    settler.add("c.pth", look(path), fake_clock.now)
    assert _wait(settler, fake_clock, 20) == []
    assert [settled.outcome for settled in _wait(settler, fake_clock, 20)] == ["ready"]


def test_nobody_waits_long_when_nobody_writes(tmp_path, fake_clock):
    whole = write_checkpoint(tmp_path / "whole").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[:-9])
    (tmp_path / "note.pth").write_text(NOTE)
    settler = _settler(tmp_path, impatient=True)
    for name in ("cut.pth", "note.pth"):
        settler.add(name, look(tmp_path / name), fake_clock.now)
    found = _wait(settler, fake_clock, 8)
    assert {settled.path: settled.outcome for settled in found} == {
        "cut.pth": "abandoned",
        "note.pth": "ready",
    }


def test_removed_file_is_gone(tmp_path, fake_clock):
    path = write_checkpoint(tmp_path / "c.pth")
    settler = _settler(tmp_path)
    settler.add("c.pth", look(path), fake_clock.now)
    path.unlink()
    assert [settled.outcome for settled in _wait(settler, fake_clock, 5)] == ["gone"]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES])
def test_file_that_cannot_be_opened_now_is_tried_again(tmp_path, fake_clock, number):
    path = write_checkpoint(tmp_path / "c.pth")
    broken = True

    def examine(path):
        if broken:
            raise OSError(number, os.strerror(number))
        return look(path)

    settler = _settler(tmp_path, examine=examine)
    settler.add("c.pth", look(path), fake_clock.now)
    assert _wait(settler, fake_clock, 30) == []
    assert os.strerror(number) in settler.waiting["c.pth"].reason
    broken = False
    assert [settled.outcome for settled in _wait(settler, fake_clock, 70)] == ["ready"]


def test_rewritten_file_counts_the_versions_passed_over(tmp_path, fake_clock):
    path = write_checkpoint(tmp_path / "checkpoint.pth", epoch=0)
    settler = _settler(tmp_path)
    settler.add("checkpoint.pth", look(path), fake_clock.now)
    for epoch in (1, 2):
        _wait(settler, fake_clock, 1)
        write_checkpoint(tmp_path / "draft", epoch=epoch).rename(path)
    (settled,) = _wait(settler, fake_clock, 10)
    assert settled.versions == 2


def test_a_hard_link_made_meanwhile_is_no_change(tmp_path, fake_clock):
    path = write_checkpoint(tmp_path / "c.pth")
    settler = _settler(tmp_path)
    settler.add("c.pth", look(path), fake_clock.now)
    _wait(settler, fake_clock, 1.5)
    os.link(path, tmp_path / "other")
    assert [settled.outcome for settled in _wait(settler, fake_clock, 1)] == ["ready"]


def test_formats_without_an_end_lie_still_three_times_as_long(tmp_path, fake_clock):
    path = write_checkpoint(tmp_path / "c.pth")

    class Unmarked:
        whole, container, reason, has_end_marker = True, "legacy", "", False

    settler = Settler(tmp_path, 2.0, lambda path: Unmarked())
    settler.add("c.pth", look(path), fake_clock.now)
    assert _wait(settler, fake_clock, 5.5) == []
    assert len(_wait(settler, fake_clock, 1)) == 1


def test_torn_read_demands_more_stillness(tmp_path, fake_clock):
    path = write_checkpoint(tmp_path / "c.pth")
    settler = _settler(tmp_path)
    settler.add("c.pth", look(path), fake_clock.now, hold=8.0)
    assert _wait(settler, fake_clock, 9.5) == []
    assert len(_wait(settler, fake_clock, 1)) == 1


def test_stamps_survive_the_ledger():
    mark = Stamp(1, 2, 3, 4, 5)
    assert Stamp.from_list(mark.to_list()) == mark
