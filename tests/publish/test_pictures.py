"""Maps in the event data: which, once each, and never more than fits."""

import itertools

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from dse_monitor.publish import pictures
from dse_monitor.publish.events import EventWriter
from dse_monitor.publish.rebuild import rebuild
from dse_monitor.runs.record import Evaluation, Source

pytestmark = pytest.mark.fast


def evaluation(seq):
    return Evaluation(status="scored", source=Source(path=f"{seq}.pth"), seq=seq, map_file=f"media/{seq}.png")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "media").mkdir()
    for seq in range(1, 6):
        (tmp_path / "media" / f"{seq}.png").write_bytes(b"map %d" % seq)
    (tmp_path / "media" / "images.webp").write_bytes(b"images")
    return tmp_path


def published(folder):
    """(name, content) of every map event of a folder, through TensorBoard."""
    found = []
    for path in sorted(folder.glob("*tfevents*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag.startswith("dse/map/"):
                    found.append((value.tag.removeprefix("dse/map/"), value.tensor.string_val[0]))
    return sorted(found)


EVERY = [("1", b"map 1"), ("2", b"map 2"), ("3", b"map 3"), ("images", b"images")]


def test_maps_and_images_are_in_the_event_data_once(folder):
    with EventWriter(folder) as writer:
        for seq in (1, 2, 3):
            writer.add_evaluation(evaluation(seq))
    assert published(folder) == EVERY


def test_a_restart_adds_the_missing_maps_only(folder):
    with EventWriter(folder) as writer:
        writer.add_evaluation(evaluation(1))
    with EventWriter(folder) as writer:
        writer.catch_up([evaluation(seq) for seq in (1, 2, 3)], [])
    found = published(folder)
    assert sorted({*found}) == EVERY
    assert [name for name, _ in found if name != "images"] == ["1", "2", "3"]


def test_a_rebuild_holds_every_map_once(folder):
    with EventWriter(folder) as writer:
        writer.add_evaluation(evaluation(1))
    rebuild(folder, [evaluation(seq) for seq in (1, 2, 3)], [], {})
    assert published(folder) == EVERY


def test_other_images_are_published_anew(folder):
    with EventWriter(folder) as writer:
        writer.add_evaluation(evaluation(1))
        (folder / "media" / "images.webp").write_bytes(b"others")
        writer.add_evaluation(evaluation(2))
    assert [content for name, content in published(folder) if name == "images"] == [b"images", b"others"]


def test_missing_and_huge_files_are_left_out(folder, monkeypatch):
    monkeypatch.setattr(pictures, "PICTURE_BYTES", 5)
    (folder / "media" / "2.png").unlink()
    (folder / "media" / "3.png").write_bytes(b"too large")
    with EventWriter(folder) as writer:
        for seq in (1, 2, 3):
            writer.add_evaluation(evaluation(seq))
    assert published(folder) == [("1", b"map 1")]


def test_a_long_run_publishes_few_maps_and_leaves_no_wide_gap():
    chosen = [count for count in range(10_000) if pictures.is_published(count)]
    assert chosen[:128] == list(range(128))
    assert len([count for count in chosen if count < 1000]) == 317
    assert len(chosen) == 527
    assert all(b - a <= max(1, b / 64) for a, b in itertools.pairwise(chosen))
