"""What is a run, on real trees: the training that wrote the files, never two, however they are foldered."""

import os
from pathlib import Path

import pytest

from dse_monitor.checkpoints.formats.magic import holds_weights
from dse_monitor.checkpoints.names import from_name, is_candidate, is_rolling, may_hold_weights, tells_count
from dse_monitor.watch.files.contents import LEAST_BYTES, Contents
from dse_monitor.watch.files.discovery import Search
from dse_monitor.watch.files.folders import Kind, kind_of
from dse_monitor.watch.files.layouts import LAYOUTS
from dse_monitor.watch.files.layouts_document import document
from dse_monitor.watch.files.scanner import Scanner

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[2]


def make(root, *tree):
    """Files, and links as `name -> target`, below a folder."""
    for line in tree:
        name, _, target = line.partition(" -> ")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if target:
            path.symlink_to(target)
        else:
            path.write_bytes(b"x")
    return root


def search(**options):
    contents = Contents(may_hold_weights, holds_weights)
    parts = {"is_candidate": is_candidate, "is_rolling": is_rolling, "from_name": from_name}
    return Search(**parts, contents=contents, **options)


def found(root, **options):
    return {os.path.relpath(run.folder, root): run.checkpoints for run in search(**options)(root).runs}


def scanned(root, run, **options):
    scanner = Scanner(
        root / run, is_candidate, is_rolling, tells_count=tells_count, joining="rule", **options
    )
    return sorted(scanner.scan().changed)


@pytest.mark.parametrize("layout", LAYOUTS, ids=[layout.name for layout in LAYOUTS])
def test_each_layout_is_as_many_runs_as_trainings_wrote_it(tmp_path, layout):
    make(tmp_path, *layout.tree)
    assert found(tmp_path) == layout.runs


@pytest.mark.parametrize("layout", LAYOUTS, ids=[layout.name for layout in LAYOUTS])
def test_the_scan_of_a_run_takes_what_belongs_to_it_and_nothing_else(tmp_path, layout):
    make(tmp_path, *layout.tree)
    assert {run: len(scanned(tmp_path, run)) for run in layout.runs} == layout.runs


def test_the_document_is_made_from_the_table():
    assert (ROOT / "docs" / "run_layouts.md").read_text() == document()


@pytest.mark.parametrize("layout", LAYOUTS, ids=[layout.name for layout in LAYOUTS])
def test_a_folder_above_changes_nothing(tmp_path, layout):
    make(tmp_path / "above" / "given", *layout.tree)
    runs = {os.path.normpath(f"given/{run}"): count for run, count in layout.runs.items()}
    assert found(tmp_path / "above") == runs


def test_a_folder_that_was_watched_before_is_a_run_without_checkpoints_too(tmp_path):
    make(tmp_path, "exp1/dse/records.jsonl")
    assert found(tmp_path) == {"exp1": 0}
    assert found(tmp_path / "exp1") == {".": 0}
    assert found(tmp_path / "nothing") == {}


def test_what_an_earlier_version_took_for_runs_is_named(tmp_path):
    make(tmp_path, "epoch_0/model.safetensors", "epoch_0/dse/records.jsonl", "epoch_1/model.safetensors")
    survey = search()(tmp_path)
    assert [run.folder for run in survey.runs] == [tmp_path]
    (note,) = survey.notes
    assert note.startswith(f"{tmp_path}/epoch_0 was watched as a run and is part of {tmp_path};")


def test_own_output_is_no_run(tmp_path):
    make(
        tmp_path,
        "a/checkpoint_1.pth",
        "a/dse/records.jsonl",
        "a/dse/keep/checkpoint_1.pth",
        "out/a/keep/c_1.pth",
    )
    assert found(tmp_path, skip=frozenset({str(tmp_path / "out")})) == {"a": 1}


@pytest.mark.parametrize(
    ("joining", "expected"),
    [("one", {".": 3}), ("many", {"version_0/checkpoints": 2, "version_1/epoch_3": 1})],
)
def test_the_user_may_know_better(tmp_path, joining, expected):
    make(
        tmp_path,
        "version_0/checkpoints/epoch=0-step=10.ckpt",
        "version_0/checkpoints/epoch=1-step=20.ckpt",
        "version_1/epoch_3/model.safetensors",
    )
    assert found(tmp_path, joining=joining) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"), [("exp_*", ["exp_1", "exp_2"]), ("old/*", ["old/exp_2"]), ("none", [])]
)
def test_runs_are_chosen_by_name_or_path(tmp_path, pattern, expected):
    make(tmp_path, "exp_1/c_1.pth", "old/exp_2/c_1.pth", "other/c_1.pth")
    runs = found(tmp_path, chosen=(pattern,))
    assert sorted(runs) == sorted(
        path if "/" in path else {"exp_2": "old/exp_2"}.get(path, path) for path in expected
    )


def test_evidence_beats_a_name_that_counts(tmp_path):
    make(
        tmp_path,
        "epoch_0/model.pt",
        "epoch_0/events.out.tfevents.1.x",
        "epoch_1/model.pt",
        "epoch_1/hparams.yaml",
    )
    assert found(tmp_path) == {"epoch_0": 1, "epoch_1": 1}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("checkpoints", Kind.PART),
        ("checkpoint-best", Kind.PART),
        ("best", Kind.PART),
        ("epoch_0", Kind.COUNT),
        ("ep1-ba100", Kind.COUNT),
        ("checkpoint-epoch-3", Kind.COUNT),
        ("global_step500", Kind.COUNT),
        ("checkpoint_000007", Kind.COUNT),
        ("0001", Kind.NUMBER),
        ("199_keep", Kind.NUMBER),
        ("version_3", Kind.RUN),
        ("2024-01-31", Kind.RUN),
        ("20240131_090000", Kind.RUN),
        ("09-00-00", Kind.RUN),
        ("run-20240131_090000-ab12cd34", Kind.RUN),
        ("seed0", Kind.RUN),
        ("Jan31_09-00-00_host", Kind.RUN),
        ("resnet50_ep200_bs256", Kind.OTHER),
        ("epoch_100_lr_0.1", Kind.OTHER),
        ("vit_small", Kind.OTHER),
        (".git", Kind.CLOSED),
        ("tmp-checkpoint-500", Kind.CLOSED),
        ("1000.orbax-checkpoint-tmp-17", Kind.CLOSED),
    ],
)
def test_names_of_folders_say_what_they_are(name, kind):
    assert kind_of(name) is kind


def test_a_link_named_latest_says_nothing():
    assert kind_of("latest", link=True) is Kind.OTHER
    assert kind_of("checkpoints", link=True) is Kind.PART


# Links.


def test_a_run_reached_by_a_link_is_found_under_its_real_folder(tmp_path):
    make(tmp_path / "scratch" / "exp9", "checkpoint_0001.pth")
    make(
        tmp_path / "runs", "exp1/checkpoint_0001.pth", "mine -> ../scratch/exp9", "again -> exp1", "up -> .."
    )
    assert found(tmp_path / "runs") == {"exp1": 1, "../scratch/exp9": 1}


def test_checkpoints_behind_a_link_belong_to_the_run_that_has_it(tmp_path):
    make(tmp_path / "scratch", "epoch_1.pth", "epoch_2.pth")
    make(tmp_path / "runs" / "exp1", "train.log", "checkpoints -> ../../scratch")
    assert found(tmp_path / "runs") == {"exp1": 2}
    assert scanned(tmp_path, "runs/exp1") == ["checkpoints/epoch_1.pth", "checkpoints/epoch_2.pth"]


def test_checkpoints_of_another_run_behind_a_link_are_not_taken(tmp_path):
    make(tmp_path, "a/checkpoint_0001.pth", "a/checkpoints -> ../b", "b/checkpoint_0001.pth")
    assert found(tmp_path) == {"a": 1, "b": 1}
    of_another = os.path.realpath(tmp_path / "b")
    assert scanned(tmp_path, "a", elsewhere=lambda path: path == of_another) == ["checkpoint_0001.pth"]


def test_a_link_that_dangles_is_looked_at_again(tmp_path):
    make(tmp_path / "runs" / "exp1", "train.log", "checkpoints -> ../../scratch")
    assert found(tmp_path / "runs") == {}
    scanner = Scanner(
        tmp_path / "runs" / "exp1", is_candidate, is_rolling, tells_count=tells_count, joining="rule"
    )
    assert scanner.scan().changed == {}
    make(tmp_path / "scratch", "epoch_1.pth")
    assert set(scanner.scan(deep=False).changed) == {"checkpoints/epoch_1.pth"}
    assert found(tmp_path / "runs") == {"exp1": 1}


# Any suffix.

ZIP = b"PK\x03\x04" + bytes(22) + b"\x10\x00\x00\x00archive/data.pkl"
OTHER_ZIP = b"PK\x03\x04" + bytes(22) + b"\x10\x00\x00\x00weights.npy     "
SAFETENSORS = (40).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1],"data_of'
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."


@pytest.mark.parametrize(
    "name", ["ckpt_1", "checkpoint_epoch_00007.pyth", "a.tar", "b.chkpt", "c.pkl", "d.model"]
)
@pytest.mark.parametrize("head", [ZIP, SAFETENSORS, LEGACY], ids=["zip", "safetensors", "legacy"])
def test_content_tells_a_checkpoint_of_any_suffix(tmp_path, name, head):
    (tmp_path / name).write_bytes(head + bytes(LEAST_BYTES))
    assert found(tmp_path) == {".": 1}


@pytest.mark.parametrize("head", [OTHER_ZIP, b"\x80\x04\x95", b"\x89PNG", b"\x7fELF", b""])
def test_other_content_is_none(tmp_path, head):
    (tmp_path / "ckpt_1").write_bytes(head + bytes(LEAST_BYTES))
    assert found(tmp_path) == {}


def test_small_files_pipes_and_what_lies_beside_checkpoints_are_not_opened(tmp_path):
    (tmp_path / "small").write_bytes(ZIP)
    (tmp_path / "random_states_0.pkl").write_bytes(ZIP + bytes(LEAST_BYTES))
    os.mkfifo(tmp_path / "pipe")
    opened = []
    contents = Contents(may_hold_weights, lambda path: opened.append(path) or True)
    with os.scandir(tmp_path) as entries:
        assert not any(contents(entry.name, entry) for entry in entries)
    assert opened == []
    assert not holds_weights(str(tmp_path / "pipe"))
    assert not holds_weights(str(tmp_path / "nothing"))


def test_pictures_are_never_opened_and_each_version_of_a_file_only_once(tmp_path):
    for number in range(300):
        (tmp_path / f"{number}.png").write_bytes(bytes(10))
    file = tmp_path / "ckpt_1"
    file.write_bytes(b"none" + bytes(LEAST_BYTES))
    opened = []
    contents = Contents(may_hold_weights, lambda path: opened.append(path) or False)
    scanner = Scanner(tmp_path, is_candidate, holds_weights=contents)
    for _ in range(3):
        scanner.scan()
    assert opened == [str(file)]
    file.write_bytes(b"more" + bytes(LEAST_BYTES + 1))
    scanner.scan()
    assert opened == [str(file)] * 2


# Many files.


def test_checkpoints_are_found_among_and_behind_heaps_of_other_files(tmp_path):
    for number in range(400):
        (tmp_path / f"{number}.png").touch()
    make(tmp_path / "a samples", *(f"{number}.png" for number in range(400)))
    make(tmp_path, *(f"checkpoint_{number}.pth" for number in range(5)))
    make(tmp_path / "checkpoints", *(f"epoch_{number}.pth" for number in range(5)))
    assert found(tmp_path, entry_limit=900) == {".": 10}
    assert len(scanned(tmp_path, ".", entry_limit=900)) == 10


def test_what_was_not_looked_at_is_said(tmp_path):
    make(
        tmp_path, *(f"{number}.png" for number in range(50)), "checkpoints/epoch_1.pth", "deep/er/epoch_1.pth"
    )
    survey = search(entry_limit=54)(tmp_path)
    assert [run.folder for run in survey.runs] == [tmp_path]
    assert survey.unlooked == "deep/er (too many entries)"


def test_a_folder_that_may_not_be_read_is_said_and_looked_at_again(tmp_path, monkeypatch):
    make(tmp_path, "exp1/checkpoint_1.pth", "private/checkpoint_1.pth")
    real = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("private"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        survey = search()(tmp_path)
        assert [run.folder.name for run in survey.runs] == ["exp1"]
        assert survey.unlooked == "private (cannot be read)"
    assert found(tmp_path) == {"exp1": 1, "private": 1}
