"""Which runs are watched: found wherever they lie, recognised whatever path leads there, each once."""

import os
import shutil

import pytest

from dse_monitor.errors import RunError
from dse_monitor.runs import ledger
from dse_monitor.runs.locking import RunLock
from dse_monitor.watch.console import Header, Notice, Problem

pytestmark = pytest.mark.fast


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def write(checkpoint):
    """Writes one checkpoint of a run; its content follows from run and epoch."""

    def one(run, epoch, name=None):
        value = f"{run.name} {epoch}"
        return checkpoint(run / (name or f"checkpoint{epoch - 1:04d}.pth"), epoch=float(epoch), value=value)

    return one


def scored(run):
    return [e.source.epoch for e in ledger.read(run / "dse").evaluations if e.status == "scored"]


def run_id(run):
    facts = ledger.read(run / "dse").facts
    (fact,) = [fact for fact in facts if fact.kind == "run"]
    return fact.data["id"]


def said(watch, label):
    return [line.text for line in watch.console.of(Header) if line.label == label]


def folders(watch):
    return sorted(watch.monitor.runs)


# Links.


def test_a_link_beside_runs_is_no_run_and_ends_nothing(runs, watching, write):
    write(runs / "exp1", 1), write(runs / "exp2", 1)
    (runs / "latest").symlink_to("exp2")
    watch = watching(runs)
    watch.step(20)
    assert folders(watch) == [runs / "exp1", runs / "exp2"]
    (runs / "latest").unlink()
    (runs / "latest").symlink_to("exp1")
    (runs / "again").symlink_to(runs / "exp1")
    write(runs / "exp3", 1)
    watch.step(60)
    assert folders(watch) == [runs / "exp1", runs / "exp2", runs / "exp3"]
    assert len(watch.jobs) == 3
    assert not watch.console.of(Problem)


def test_a_run_named_by_a_link_and_by_its_folder_is_watched_once(runs, watching, write):
    write(runs / "exp1", 1)
    (runs / "latest").symlink_to("exp1")
    watch = watching(runs / "latest", runs / "exp1")
    watch.step(20)
    assert len(watch.monitor.runs) == 1
    assert len(watch.jobs) == 1


def test_a_run_behind_a_link_is_watched_under_its_real_folder(tmp_path, runs, watching, write):
    write(tmp_path / "scratch" / "exp9", 1)
    (runs / "mine").symlink_to(tmp_path / "scratch" / "exp9")
    watch = watching(runs, out=tmp_path / "out")
    watch.step(20)
    assert folders(watch) == [tmp_path / "scratch" / "exp9"]
    assert (tmp_path / "out" / "exp9" / "records.jsonl").exists()


# Renames.


def test_a_run_renamed_while_watched_goes_on(runs, watching, write):
    for name in "abc":
        write(runs / name, 1)
    watch = watching(runs)
    watch.step(10)
    before = run_id(runs / "b")
    (runs / "b").rename(runs / "b_away")
    write(runs / "b_away", 2)
    watch.step(60)
    assert folders(watch) == [runs / "a", runs / "b_away", runs / "c"]
    assert scored(runs / "b_away") == [1.0, 2.0]
    assert run_id(runs / "b_away") == before
    assert not (runs / "b").exists()
    assert len(watch.jobs) == 4
    (text,) = [n.text for n in watch.console.of(Notice) if "renamed" in n.text]
    assert text == f"b was renamed: {runs / 'b'} is now {runs / 'b_away'}; going on there"


def test_a_run_named_by_itself_is_followed_when_it_is_renamed(runs, watching, write):
    run = runs / "exp1"
    write(run, 1)
    watch = watching(run)
    watch.step(10)
    run.rename(runs / "kept")
    write(runs / "kept", 2)
    watch.step(60)
    assert scored(runs / "kept") == [1.0, 2.0]
    write(run, 1)  # the training starts anew at the old place: another run
    watch.step(60)
    assert folders(watch) == [run, runs / "kept"]
    assert scored(run) == [1.0]
    assert run_id(run) != run_id(runs / "kept")


def test_a_name_taken_over_by_another_run_mixes_nothing(runs, watching, write):
    write(runs / "a", 1), write(runs / "b", 5)
    watch = watching(runs)
    watch.step(10)
    ids = {run_id(runs / "a"): [1.0], run_id(runs / "b"): [5.0]}
    (runs / "a").rename(runs / "old")
    (runs / "b").rename(runs / "a")
    watch.step(60)
    assert folders(watch) == [runs / "a", runs / "old"]
    assert {run_id(run): scored(run) for run in (runs / "a", runs / "old")} == ids
    assert len(watch.jobs) == 2


def test_output_elsewhere_stays_that_of_the_run_when_it_is_renamed(tmp_path, runs, watching, write):
    write(runs / "a", 1)
    watch = watching(runs, out=tmp_path / "out")
    watch.step(10)
    (runs / "a").rename(runs / "b")
    write(runs / "b", 2)
    watch.step(60)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a"]
    assert [e.source.epoch for e in ledger.read(tmp_path / "out" / "a").evaluations] == [1.0, 2.0]


# Identity.


def test_a_run_made_anew_is_another_and_one_put_back_is_the_same(tmp_path, runs, watching, write):
    for name in "ab":
        write(runs / name, 1)
    watch = watching(runs)
    watch.step(10)
    first, other = run_id(runs / "a"), run_id(runs / "b")
    shutil.copytree(runs / "a", tmp_path / "copy")
    shutil.rmtree(runs / "a")
    watch.step(20)
    write(runs / "a", 1)
    watch.step(40)
    assert run_id(runs / "a") not in (first, other)
    shutil.rmtree(runs / "a")
    watch.step(20)
    shutil.copytree(tmp_path / "copy", runs / "a")
    write(runs / "a", 2)
    watch.step(40)
    assert run_id(runs / "a") == first
    assert scored(runs / "a") == [1.0, 2.0]
    assert scored(runs / "b") == [1.0]


# Finding.


def test_two_trainings_are_never_one(runs, watching, write):
    for name in ("2024-01-31_09-00-00", "2024-02-01_09-00-00"):
        write(runs / "logs" / "train" / "runs" / name, 1, "checkpoints/epoch_000.ckpt")
        write(runs / "logs" / "train" / "runs" / name, 2, "checkpoints/epoch_001.ckpt")
    watch = watching(runs / "logs", once=True)
    assert watch.run() == 0
    assert [scored(run) for run in folders(watch)] == [[1.0, 2.0]] * 2
    assert not (runs / "logs" / "dse").exists()
    first, *rest = said(watch, "found")
    assert first == f"2 runs in {runs / 'logs'}: 2024-01-31_09-00-00, 2024-02-01_09-00-00"
    assert rest[0] == "2024-01-31_09-00-00: 2 checkpoints such as checkpoints/epoch_000.ckpt"


def test_folders_of_one_training_are_one_run(runs, watching, write):
    for epoch in (1, 2, 3):
        write(runs / "exp1", epoch, f"epoch_{epoch - 1}/model.safetensors")
    watch = watching(runs / "exp1", once=True)
    assert watch.run() == 0
    assert scored(runs / "exp1") == [1.0, 2.0, 3.0]
    assert not list(runs.glob("exp1/epoch_*/dse"))
    (found,) = said(watch, "found")
    named = "named as by accelerate's examples or torchtune"
    assert found == f"3 checkpoints such as epoch_0/model.safetensors, {named}"


def test_a_training_that_begins_inside_a_watched_run_is_watched_for_itself(runs, watching, write):
    run = runs / "exp1"
    write(run, 1), write(run, 2)
    watch = watching(run)
    watch.step(10)
    write(run / "finetune", 1)
    watch.step(60)
    assert folders(watch) == [run, run / "finetune"]
    assert sorted(scored(run)) == [1.0, 2.0]
    assert scored(run / "finetune") == [1.0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"as_one": True}, {".": [1.0, 2.0, 3.0]}),
        ({"as_many": True}, {"a": [1.0], "a/epoch_1": [2.0], "b": [3.0]}),
        ({"only": ("a*",)}, {"a": [1.0, 2.0]}),
    ],
)
def test_the_user_may_decide_what_is_a_run(runs, watching, write, options, expected):
    write(runs / "a", 1)
    write(runs / "a", 2, "epoch_1/model.pt")
    write(runs / "b", 3)
    assert watching(runs, once=True, **options).run() == 0
    assert {str(path.parent.parent.relative_to(runs)) for path in runs.rglob("records.jsonl")} == set(
        expected
    )
    assert {name: scored(runs / name) for name in expected} == expected


def test_no_run_that_fits_is_an_error(runs, watching, write):
    write(runs / "a", 1)
    with pytest.raises(RunError, match="no run fits --run b"):
        watching(runs, once=True, only=("b",)).run()


# What cannot be looked at.


def test_once_says_what_was_not_looked_at_and_ends_with_3(runs, watching, write, monkeypatch):
    write(runs / "a", 1), write(runs / "private", 1)
    real = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("private"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        watch = watching(runs, once=True)
        assert watch.run() == 3
    assert scored(runs / "a") == [1.0]
    (text,) = [n.text for n in watch.console.of(Notice) if "not looked at" in n.text]
    assert text == f"{runs}: checkpoints may be missed, not looked at: private (cannot be read)"
    assert watching(runs, once=True).run() == 0
    assert scored(runs / "private") == [1.0]


def test_a_run_that_somebody_else_watches_does_not_end_the_others(runs, watching, write):
    write(runs / "a", 1), write(runs / "b", 1)
    lock = RunLock(runs / "a" / "dse")
    lock.take()
    watch = watching(runs)
    watch.step(10)
    assert scored(runs / "b") == [1.0]
    assert [p.run for p in watch.console.of(Problem)] == ["a"]
    lock.release()
    watch.step(90)
    assert scored(runs / "a") == [1.0]


def test_once_beside_a_run_that_somebody_else_watches_ends_with_3(runs, watching, write):
    write(runs / "a", 1), write(runs / "b", 1)
    lock = RunLock(runs / "a" / "dse")
    lock.take()
    assert watching(runs, once=True).run() == 3
    lock.release()
    assert scored(runs / "b") == [1.0]


def test_a_link_given_as_the_run_may_come_to_lead_elsewhere(runs, watching, write):
    write(runs / "exp1", 1), write(runs / "exp2", 5)
    (runs / "latest").symlink_to("exp1")
    watch = watching(runs / "latest")
    watch.step(10)
    assert folders(watch) == [runs / "exp1"]
    (runs / "latest").unlink()
    (runs / "latest").symlink_to("exp2")
    watch.step(40)
    assert folders(watch) == [runs / "exp1", runs / "exp2"]
    assert (scored(runs / "exp1"), scored(runs / "exp2")) == ([1.0], [5.0])


@pytest.mark.slow
def test_twenty_minutes_of_thirty_runs_that_come_go_and_change_their_names(runs, watching, write):
    """Three are renamed, two made anew, a link beside them is re-pointed every minute: nothing is mixed."""
    written = {f"r{number:02d}": [] for number in range(30)}  # by the name a run has now
    link = runs / "latest"
    watch = watching(runs)
    for minute in range(20):
        for number, (name, epochs) in enumerate(written.items()):
            if minute % 5 == number % 5:
                epochs.append(minute + 1)
                write(runs / name, minute + 1)
        link.unlink(missing_ok=True)
        link.symlink_to(sorted(written)[minute])
        if minute in (4, 9, 14):
            old = f"r{minute:02d}"
            (runs / old).rename(runs / f"{old}_renamed")
            written[f"{old}_renamed"] = written.pop(old)
        if minute in (7, 12):
            name = f"r{minute + 10:02d}"
            shutil.rmtree(runs / name)
            watch.step(5 if minute == 7 else 0)  # noticed, or not
            written[name] = [minute + 1]
            write(runs / name, minute + 1)
        watch.step(60)
    watch.step(120)
    assert folders(watch) == [runs / name for name in sorted(written)]
    assert {name: sorted(scored(runs / name)) for name in written} == written
    assert len({run_id(runs / name) for name in written}) == 30
    assert not [p for p in watch.console.of(Problem) if "gone" not in p.reason and "removed" not in p.reason]
