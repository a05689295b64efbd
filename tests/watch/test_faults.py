"""What a watcher meets in a month: each fault is made for real, and the watch goes on."""

import errno
import json
import os
import shutil
import signal

import pytest
from watch_fakes import FakeWorker, write_checkpoint

from dse_monitor.errors import DeviceError, ImagesError, RunError
from dse_monitor.evaluation.config import EvaluationConfig
from dse_monitor.publish import events
from dse_monitor.runs import ledger
from dse_monitor.watch.console import Header, Notice, Problem, Row
from dse_monitor.watch.pool import BACK_OFF_SECONDS, START_TRIES
from dse_monitor.watch.workers.child import WorkerEnd

pytestmark = pytest.mark.fast


@pytest.fixture
def run(tmp_path):
    return tmp_path / "exp1"


def _view(run):
    return ledger.read(run / "dse")


def _scored(run):
    return [(e.source.path, e.source.epoch) for e in _view(run).evaluations if e.status == "scored"]


class Scripted(FakeWorker):
    """A worker whose answers are replaced, one after the other; None lets the fake answer."""

    script = ()

    def send(self, job):
        answer = self.script.pop(0) if self.script else None
        if callable(answer):
            answer = answer(job)
        if answer is None:
            return super().send(job)
        self.jobs.append(job)
        self.answers += [] if answer == "silence" else [{"job": job["job"], **answer}]
        return None


def _scripted(*answers):
    return type("Script", (Scripted,), {"script": list(answers)})


# Files.


def test_file_written_slowly_is_scored_once_after_its_end(run, watching, tmp_path):
    whole = write_checkpoint(tmp_path / "whole", epoch=1.0).read_bytes()
    run.mkdir()
    watch = watching(run)
    watch.step(3)
    for end in range(200, len(whole) + 200, 200):
        (run / "checkpoint0000.pth").write_bytes(whole[:end])
        watch.step(1.0)
    watch.step(10)
    assert _scored(run) == [("checkpoint0000.pth", 1.0)]
    assert watch.console.of(Problem) == []


def test_truncated_and_foreign_files_get_one_line_and_one_record_each_and_the_watch_goes_on(run, watching):
    whole = write_checkpoint(run / "checkpoint0002.pth", epoch=3.0).read_bytes()
    (run / "checkpoint0000.pth").write_bytes(whole[:-30])
    (run / "checkpoint0001.pth").write_text(
        "A note about the run that nobody can take for a checkpoint. " * 3
    )
    watch = watching(run, once=True)
    assert watch.run() == 3
    assert _scored(run) == [("checkpoint0002.pth", 3.0)]
    failed = {e.source.path: e for e in _view(run).evaluations if e.status == "failed"}
    assert set(failed) == {"checkpoint0000.pth", "checkpoint0001.pth"}
    assert "not whole" in failed["checkpoint0000.pth"].reason
    assert [problem.path for problem in watch.console.of(Problem)] == sorted(failed)
    again = watching(run, once=True)
    assert again.run() == 3
    assert again.jobs == []
    assert len(_view(run).evaluations) == 3


def test_failed_file_is_tried_again_once_it_changes(run, watching):
    path = run / "checkpoint0000.pth"
    run.mkdir()
    path.write_text("A note about the run that nobody can take for a checkpoint. " * 3)
    watch = watching(run)
    watch.step(120)
    assert [e.status for e in _view(run).evaluations] == ["failed"]
    write_checkpoint(path, epoch=1.0)
    watch.step(10)
    assert _scored(run) == [("checkpoint0000.pth", 1.0)]


def test_rolling_file_is_scored_by_content_and_epochs_come_from_inside(run, watching):
    path = run / "checkpoint.pth"
    watch = watching(run)
    for epoch in (1.0, 2.0, 3.0):
        write_checkpoint(path, epoch=epoch, value=epoch)
        watch.step(10)
    assert _scored(run) == [("checkpoint.pth", epoch) for epoch in (1.0, 2.0, 3.0)]
    os.utime(path)
    watch.step(10)
    assert len(_scored(run)) == 3


def test_only_the_latest_of_several_versions_is_scored_and_the_others_are_counted(run, watching):
    path = write_checkpoint(run / "checkpoint.pth", epoch=0.0)
    watch = watching(run, settle_seconds=5.0)
    for epoch in (1.0, 2.0, 3.0):
        watch.step(2)
        write_checkpoint(run / "draft", epoch=epoch, value=epoch).rename(path)
    watch.step(20)
    assert _scored(run) == [("checkpoint.pth", 3.0)]
    (line,) = [json.loads(x) for x in (run / "dse/records.jsonl").read_text().splitlines() if '"scored"' in x]
    assert line["versions_passed_over"] == 3


def test_rewrite_with_size_and_time_restored_is_scored_again(run, watching):
    path = write_checkpoint(run / "checkpoint0000.pth", epoch=1.0, value=1)
    before = path.stat()
    watch = watching(run)
    watch.step(10)
    write_checkpoint(path, epoch=1.0, value=2)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    watch.step(10)
    assert len({e.source.content for e in _view(run).evaluations}) == 2


def test_links_and_copies_are_scored_once_under_the_name_that_stays(run, watching):
    path = write_checkpoint(run / "checkpoint-12.pth.tar", epoch=13.0)
    os.link(path, run / "last.pth.tar")
    (run / "model_best.pth.tar").symlink_to(path)
    shutil.copy(path, run / "checkpoint.pth")
    watch = watching(run)
    watch.step(10)
    (evaluation,) = _view(run).evaluations
    assert evaluation.source.path == "checkpoint-12.pth.tar"
    assert set(evaluation.source.aliases) == {"last.pth.tar", "model_best.pth.tar", "checkpoint.pth"}
    os.link(path, run / "kept_by_somebody.pth")
    os.chmod(path, 0o600)
    watch.step(10)
    assert len(watch.jobs) == 1
    again = watching(run, once=True)
    watch.monitor.close()
    assert again.run() == 0
    assert again.jobs == []


def test_content_that_only_the_reader_recognises_is_recorded_once(run, watching, monkeypatch):
    monkeypatch.setattr("dse_monitor.runs.identity.content_key", lambda path: None)
    path = write_checkpoint(run / "checkpoint0000.pth", epoch=1.0)
    shutil.copy(path, run / "model_best.pth")
    watch = watching(run, once=True)
    assert watch.run() == 0
    assert len(watch.jobs) == 2
    (evaluation,) = _view(run).evaluations
    assert evaluation.source.aliases == ("model_best.pth",)


def test_file_removed_before_it_is_read_is_recorded_as_lost(run, watching):
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0)

    def remove(job):
        os.unlink(job["path"])

    watch = watching(run, worker=_scripted(remove))
    watch.step(30)
    assert [fact.data["path"] for fact in _view(run).facts if fact.kind == "lost"] == ["checkpoint0000.pth"]
    assert len(watch.jobs) == 1
    assert "removed before it could be read" in watch.console.of(Problem)[0].reason


def test_waiting_file_that_is_rotated_away_is_lost_without_aside_and_scored_with_it(run, watching, tmp_path):
    for aside, outcome in ((0, []), (1, [("checkpoint0000.pth", 1.0)])):
        here = tmp_path / str(aside)
        path = write_checkpoint(here / "checkpoint0000.pth", epoch=1.0)
        busy = {"busy": "no room"}
        watch = watching(here, worker=_scripted(busy), copy_aside=aside)
        watch.step(10)
        path.unlink()
        watch.step(2 * BACK_OFF_SECONDS[0])
        assert _scored(here) == outcome
        assert not list((here / "dse").glob("aside/*"))


def test_protected_file_is_scored_by_the_next_watcher(run, watching):
    path = write_checkpoint(run / "checkpoint0000.pth", epoch=1.0)
    first = watching(run, worker=_scripted({"busy": "no room"}), copy_aside=1)
    first.step(10)
    first.monitor.close()
    path.unlink()
    write_checkpoint(run / "checkpoint0001.pth", epoch=2.0)
    second = watching(run, copy_aside=1)
    second.step(10)
    assert sorted(_scored(run)) == [("checkpoint0000.pth", 1.0), ("checkpoint0001.pth", 2.0)]


def test_file_rewritten_while_it_waits_for_the_worker_is_scored_in_its_new_version(run, watching):
    path = write_checkpoint(run / "checkpoint0000.pth", epoch=1.0)

    def rewrite(job):
        write_checkpoint(path, epoch=1.0, value=9)

    watch = watching(run, worker=_scripted(rewrite))
    watch.step(20)
    assert len(_scored(run)) == 1
    assert len(watch.jobs) == 2


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_mix_of_two_checkpoints_is_read_again_and_then_given_up(run, watching, share):
    old = write_checkpoint(run / "checkpoint0000.pth", epoch=1.0, value=1).read_bytes()
    new = write_checkpoint(run / "checkpoint0000.pth", epoch=1.0, value=2).read_bytes()
    assert len(old) == len(new)
    cut = int(share * len(new))
    (run / "checkpoint0000.pth").write_bytes(new[:cut] + old[cut:])
    watch = watching(run)
    watch.step(120)
    (evaluation,) = _view(run).evaluations
    assert evaluation.status == "failed"
    assert evaluation.error == "CorruptCheckpoint"
    assert len(watch.jobs) == 3
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0, value=2)
    watch.step(20)
    assert len(_scored(run)) == 1


# Folders.


def test_run_that_does_not_exist_yet_is_waited_for(run, watching):
    watch = watching(run)
    watch.step(60)
    assert not run.exists()
    assert len(watch.console.of(Notice)) == 1
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0)
    watch.step(10)
    assert len(_scored(run)) == 1


def test_missing_run_to_be_scored_once_is_an_error(run, watching):
    with pytest.raises(RunError, match="does not exist"):
        watching(run, once=True).run()


def test_folder_that_goes_and_comes_back_is_taken_up_where_it_was(run, watching, tmp_path):
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0)
    watch = watching(run)
    watch.step(10)
    (tmp_path / "other").mkdir()
    run.rename(tmp_path / "other" / "unmounted")
    watch.step(30)
    assert not run.exists()
    assert len([p for p in watch.console.of(Problem) if "is gone" in p.reason]) == 1
    (tmp_path / "other" / "unmounted").rename(run)
    write_checkpoint(run / "checkpoint0001.pth", epoch=2.0, value=2)
    watch.step(30)
    assert _scored(run) == [("checkpoint0000.pth", 1.0), ("checkpoint0001.pth", 2.0)]
    assert watch.jobs == ["checkpoint0000.pth", "checkpoint0001.pth"]


def test_run_that_is_removed_and_started_anew_is_watched_anew(run, watching):
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0, value=1)
    watch = watching(run)
    watch.step(10)
    shutil.rmtree(run)
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0, value=2)
    watch.step(30)
    (evaluation,) = _view(run).evaluations
    assert len(watch.jobs) == 2
    assert evaluation.status == "scored"


def test_trainer_may_remove_everything_while_we_work(run, watching):
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0)
    held = []

    def look(job):
        links = [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if fd.isdigit()
            if os.path.exists(f"/proc/self/fd/{fd}")
        ]
        held.extend(link for link in links if link.startswith(str(run)) and "/dse/" not in link)

    watch = watching(run, worker=_scripted(look))
    watch.step(20)
    assert held == []
    assert len(_scored(run)) == 1


def test_second_watcher_is_refused_and_names_the_holder(run, watching):
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0)
    watch = watching(run)
    watch.step(5)
    child = os.fork()  # the lock is per process
    if child == 0:
        try:
            watching(run).step(1)
        except RunError as error:
            os._exit(7 if str(os.getppid()) in str(error) and "already being watched" in str(error) else 8)
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_nothing_is_written_outside_the_output_folder(run, watching, tmp_path):
    write_checkpoint(run / "checkpoints" / "checkpoint0000.pth", epoch=1.0)
    before = sorted(run.rglob("*"))
    watch = watching(run, out=tmp_path / "out", keep_best=1, copy_aside=2)
    watch.step(20)
    assert sorted(run.rglob("*")) == before
    assert (tmp_path / "out" / "records.jsonl").exists()


def test_several_runs_are_served_in_turn_and_new_ones_are_picked_up(tmp_path, watching):
    runs = tmp_path / "runs"
    for name in ("a", "b"):
        for number in range(3):
            write_checkpoint(
                runs / name / f"checkpoint{number:04d}.pth", epoch=number + 1.0, value=f"{name}{number}"
            )
    watch = watching(runs, once=False)
    watch.step(10)
    order = [job["path"].split("/")[-2] for worker in watch.workers for job in worker.jobs]
    assert order == ["a", "b"] * 3
    write_checkpoint(runs / "c" / "checkpoints" / "checkpoint0000.pth", epoch=1.0)
    watch.step(40)
    for name in ("a", "b", "c"):
        assert (runs / name / "dse" / "records.jsonl").exists()
    assert any(line.startswith("c  ") for line in watch.console.lines)


def test_restarted_training_makes_a_newer_value_win_without_an_alert(run, watching):
    watch = watching(run)
    for order, epoch in enumerate([1.0, 2.0, 3.0, 2.0, 3.0, 4.0]):
        write_checkpoint(run / "checkpoint.pth", epoch=epoch, value=order)
        watch.step(10)
    assert len(_scored(run)) == 6
    assert _view(run).alerts == ()
    state = json.loads((run / "dse" / "best.json").read_text())
    assert state["measured"] == 4


# Workers.


def test_checkpoint_that_kills_the_worker_is_tried_twice_and_then_left(run, watching):
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0, value=1)
    shutil.copy(run / "checkpoint0000.pth", run / "copy.pth")
    write_checkpoint(run / "checkpoint0001.pth", epoch=2.0, value=2)

    class Dying(FakeWorker):
        dead = None

        def send(self, job):
            self.jobs.append(job)
            if "0001" in job["name"]:
                super().send(job)
                self.jobs.pop()
            else:
                self.dead = WorkerEnd.of_process(-signal.SIGKILL, b"")

        def ended(self):
            return self.dead

    watch = watching(run, worker=Dying)
    watch.step(60)
    assert _scored(run) == [("checkpoint0001.pth", 2.0)]
    (failed,) = [e for e in _view(run).evaluations if e.status == "failed"]
    assert failed.error == "WorkerCrash"
    assert "SIGKILL" in failed.reason
    assert watch.jobs.count("checkpoint0000.pth") + watch.jobs.count("copy.pth") == 2
    assert len(_view(run).evaluations) == 2  # the copy has the same content
    again = watching(run)
    watch.monitor.close()
    again.step(20)
    assert again.jobs == []


def test_worker_that_hangs_is_ended_after_its_time(run, watching):
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0)
    watch = watching(run, worker=_scripted("silence"))
    watch.step(500)
    assert _scored(run) == []
    watch.step(200)
    assert _scored(run) == [("checkpoint0000.pth", 1.0)]
    assert watch.workers[0].stopped
    assert "said nothing for" in watch.console.of(Problem)[0].reason


def test_worker_that_cannot_start_ends_the_watch_with_its_words(run, watching):
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0)

    class Broken(FakeWorker):
        def send(self, job):
            self.jobs.append(job)

        def ended(self):
            return WorkerEnd.of_process(1, b"ModuleNotFoundError: No module named 'torch'")

    watch = watching(run, worker=Broken)
    with pytest.raises(RunError, match="No module named 'torch'"):
        watch.step(60)
    assert len(watch.workers) == START_TRIES
    assert _view(run).evaluations == ()


def test_words_of_a_worker_that_cannot_start_do_not_make_a_crash(run, watching):
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0)

    class Broken(FakeWorker):
        def send(self, job):
            self.jobs.append(job)

        def ended(self):
            return WorkerEnd.of_process(1, b"OSError: the licence server was ended by its host")

    with pytest.raises(RunError, match="cannot be started"):
        watching(run, worker=Broken).run()
    assert _view(run).evaluations == ()


def test_busy_device_is_waited_for_longer_and_longer_and_said_once(run, watching):
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0)
    busy = {"busy": "cuda:0 has 1.2 GB free, 3.1 GB are needed"}
    watch = watching(run, worker=_scripted(*[busy] * 3))
    watch.step(BACK_OFF_SECONDS[0] + BACK_OFF_SECONDS[1] + 20)
    assert len(watch.jobs) == 3
    assert _scored(run) == []
    watch.step(BACK_OFF_SECONDS[2] + 20)
    assert len(_scored(run)) == 1
    assert len([line for line in watch.console.lines if "1.2 GB free" in line]) == 1


@pytest.mark.parametrize(("name", "error"), [("ImagesError", ImagesError), ("DeviceError", DeviceError)])
def test_settings_that_never_worked_end_the_watch_and_later_trouble_is_waited_out(run, watching, name, error):
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0)
    trouble = {"error": name, "reason": "something is missing; bring it"}
    with pytest.raises(error, match="bring it"):
        watching(run, worker=_scripted(trouble)).run()
    later = watching(run, worker=_scripted(None, trouble))
    later.step(10)
    write_checkpoint(run / "checkpoint0001.pth", epoch=2.0, value=2)
    later.step(120)
    assert len(_scored(run)) == 2


def test_worker_ends_after_the_burst_and_after_twenty_jobs(run, watching):
    for number in range(25):
        write_checkpoint(run / f"checkpoint{number:04d}.pth", epoch=number + 1.0, value=number)
    watch = watching(run)
    watch.step(30)
    assert [len(worker.jobs) for worker in watch.workers] == [20, 5]
    assert all(worker.stopped for worker in watch.workers)


# Disk, clock, end.


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_full_disk_stops_no_scoring_and_is_said_once_and_made_up_for(run, watching, monkeypatch, number):
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0, value=1)
    watch = watching(run)
    watch.step(10)

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(ledger.Ledger, "_write", refuse)
        patch.setattr(events.EventFile, "append", refuse)
        patch.setattr("dse_monitor.atomic.write_text", refuse)
        for epoch in (2.0, 3.0):
            write_checkpoint(run / f"checkpoint{epoch:04.0f}.pth", epoch=epoch, value=epoch)
            watch.step(20)
        assert len(_scored(run)) == 1
        assert len(watch.console.of(Row)) == 3
    watch.step(30)
    assert len(_scored(run)) == 3
    assert events.published(run / "dse").evaluations == {e.seq for e in _view(run).evaluations}
    assert [(a.kind, a.status) for a in _view(run).alerts] == [("health", "firing"), ("health", "resolved")]
    assert len([p for p in watch.console.of(Problem) if "cannot be written" in p.reason]) == 1
    assert json.loads((run / "dse" / "best.json").read_text())["measured"] == 3


def test_ledger_that_somebody_removes_is_begun_anew(run, watching):
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0)
    watch = watching(run)
    watch.step(10)
    shutil.rmtree(run / "dse")
    watch.step(30)
    assert len(_scored(run)) == 1
    assert len(watch.jobs) == 2


def test_jump_of_the_clock_is_said_and_changes_nothing(run, watching, fake_clock):
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0, value=1)
    watch = watching(run)
    watch.step(10)
    fake_clock.wall -= 7200
    write_checkpoint(run / "checkpoint0001.pth", epoch=2.0, value=2)
    watch.step(10)
    assert len([n for n in watch.console.of(Notice) if "clock jumped by -7200 s" in n.text]) == 1
    first, second = _view(run).evaluations
    assert second.seq > first.seq


def test_watch_ends_when_idle_or_when_the_goal_is_reached(run, watching, fake_clock):
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0, value=1)
    assert watching(run, exit_after_idle=100.0).run() == 0
    begin = fake_clock.now
    watch = watching(run, until_epoch=2.0)
    watch.step(50)
    write_checkpoint(run / "checkpoint0001.pth", epoch=2.0, value=2)
    assert watch.run() == 0
    assert fake_clock.now - begin < 70
    assert watching(run, until_epoch=2.0).run() == 0
    assert watching(run, until_step=5, exit_after_idle=30.0).run() == 0


def test_other_settings_measure_again_on_a_line_of_their_own(run, watching):
    for number in range(2):
        write_checkpoint(run / f"checkpoint{number:04d}.pth", epoch=number + 1.0, value=number)
    assert watching(run, once=True, config=EvaluationConfig(images="i", seed=0)).run() == 0
    other = watching(run, once=True, config=EvaluationConfig(images="i", seed=1))
    assert other.run() == 0
    assert any("others than before" in line for line in other.console.lines)
    view = _view(run)
    assert len(view.evaluations) == 4
    assert len(view.settings) == 2
    assert json.loads((run / "dse" / "best.json").read_text())["measured"] == 2


def test_a_number_that_is_read_otherwise_is_not_joined_and_said(run, watching):
    """A file that says how its images are normalised after others that did not, in one watch and in two."""
    half = (0.5, 0.5, 0.5)
    for number in range(2):
        write_checkpoint(run / f"checkpoint{number:04d}.pth", epoch=number + 1.0, value=number)
    assert watching(run, once=True).run() == 0
    write_checkpoint(run / "checkpoint0002.pth", epoch=3.0, value=2, mean=half)
    later = watching(run)
    later.step(10)
    write_checkpoint(run / "checkpoint0003.pth", epoch=4.0, value=3, mean=half)
    write_checkpoint(run / "checkpoint0004.pth", epoch=5.0, value=4, mean=(0.1, 0.1, 0.1))
    later.step(20)
    said = [each.text for each in later.console.of(Notice) if "measured otherwise" in each.text]
    assert len(said) == 2
    assert "checkpoint0002.pth was measured otherwise than what is on record" in said[0]
    assert "mean 0.5, 0.5, 0.5, was 0.485, 0.456, 0.406" in said[0]
    assert "--out" in said[0]
    assert "checkpoint0004.pth" in said[1]
    assert [len(_view(run).evaluations), len(_view(run).settings)] == [5, 3]


def test_other_options_are_said_once_and_not_for_every_number(run, watching):
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0, value=1)
    assert watching(run, once=True, config=EvaluationConfig(images="i", seed=0)).run() == 0
    other = watching(run, once=True, config=EvaluationConfig(images="i", seed=1))
    assert other.run() == 0
    assert not [each for each in other.console.of(Notice) if "measured otherwise" in each.text]


def test_what_was_assumed_of_a_network_is_said_once_at_the_top(run, watching):
    for number in range(2):
        assumed = ["activation", "mean", "std", "crop"]  # how pictures are cut is the same for all
        write_checkpoint(
            run / f"checkpoint{number:04d}.pth", epoch=number + 1.0, value=number, assumed=assumed
        )
    watch = watching(run, once=True)
    assert watch.run() == 0
    lines = [line for line in watch.console.of(Header) if line.label == "assumed"]
    assert [(line.text, line.aside) for line in lines] == [
        ("activation, mean, std", "see dse-monitor inspect")
    ]


def test_options_pass_checkpoints_over_and_say_so_once(run, watching):
    for number in range(6):
        path = write_checkpoint(run / f"checkpoint{number:04d}.pth", epoch=number + 1.0, value=number)
        os.utime(path, (1000.0 * number, 1000.0 * number))
    watch = watching(run, once=True, every=2)
    assert watch.run() == 0
    assert [epoch for _, epoch in _scored(run)] == [2.0, 4.0, 6.0]
    assert len([line for line in watch.console.lines if "--every 2" in line]) == 1
    since = watching(run, once=True, since="3", min_interval=1500.0)
    assert since.run() == 0
    assert [epoch for _, epoch in _scored(run)] == [2.0, 4.0, 6.0, 3.0, 5.0]


def test_supervisor_told_to_end_kills_a_busy_worker_and_the_next_one_scores_it(run, watching):
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0)
    watch = watching(run, worker=_scripted("silence"))
    watch.step(10)
    watch.monitor.stop()
    assert watch.run() == 0
    assert watch.workers[0].stopped
    assert _view(run).evaluations == ()
    assert watching(run, once=True).run() == 0
    assert len(_scored(run)) == 1


def test_invalid_checkpoint_is_recorded_with_an_alert_and_never_best(run, watching):
    write_checkpoint(run / "checkpoint0000.pth", epoch=1.0, value=1)
    watch = watching(run)
    watch.step(10)
    write_checkpoint(run / "checkpoint0001.pth", epoch=2.0, value=2, invalid=True)
    watch.step(10)
    assert [e.status for e in _view(run).evaluations] == ["scored", "invalid"]
    assert [alert.kind for alert in _view(run).alerts] == ["non-finite"]
    assert json.loads((run / "dse" / "best.json").read_text())["best"]["epoch"] == 1.0
