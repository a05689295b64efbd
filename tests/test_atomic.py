"""What a reader, or the next start, finds after a write that ended early."""

import os

import pytest

from dse_monitor import atomic

pytestmark = pytest.mark.fast


def test_reader_never_sees_a_part_of_a_replaced_file(tmp_path, monkeypatch):
    path = tmp_path / "small.json"
    atomic.write_text(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    atomic.write_text(path, "new")
    assert path.read_text() == "new"


def test_an_error_while_writing_leaves_the_old_file_and_no_draft(tmp_path):
    path = tmp_path / "pixels"
    atomic.write_bytes(path, b"old")

    def write():
        with atomic.replacing(path) as draft:
            draft.write_bytes(b"ne")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_leaves_nothing_changes_nothing(tmp_path):
    path = tmp_path / "kept"
    path.write_bytes(b"old")
    with atomic.replacing(path):
        pass
    assert path.read_bytes() == b"old"


def test_folders_and_links_appear_whole(tmp_path):
    with atomic.replacing(tmp_path / "folder") as draft:
        draft.mkdir()
        (draft / "a").write_text("1")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "a").read_text() == "1"
    atomic.link(tmp_path / "best", "folder")
    atomic.link(tmp_path / "best", "folder/a")
    assert os.readlink(tmp_path / "best") == "folder/a"


def test_the_rest_of_an_earlier_draft_is_no_obstacle(tmp_path):
    """A process id comes back; the folder that its former holder left half written is not taken over."""
    with pytest.raises(KeyboardInterrupt), atomic.replacing(tmp_path / "folder") as draft:
        raise KeyboardInterrupt
    draft.mkdir()
    (draft / "half").write_text("")
    with atomic.replacing(tmp_path / "folder") as again:
        assert again == draft
        again.mkdir()
    assert list((tmp_path / "folder").iterdir()) == []


def test_removing_a_link_to_a_folder_leaves_the_folder(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_text("")
    (tmp_path / "link").symlink_to("theirs")
    atomic.remove(tmp_path / "link")
    assert (tmp_path / "theirs" / "file").exists()
    assert not (tmp_path / "link").is_symlink()
