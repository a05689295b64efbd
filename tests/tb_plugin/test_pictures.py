"""Feature maps as files: found below the log folder, and nothing else."""

from types import SimpleNamespace

import pytest

from dse_monitor.tb_plugin.pictures import Folders

pytestmark = pytest.mark.fast


def flags(logdir="", logdir_spec=""):
    return SimpleNamespace(logdir=logdir, logdir_spec=logdir_spec)


PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20


@pytest.fixture
def media(tmp_path):
    folder = tmp_path / "logs" / "exp" / "dse" / "media"
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    return folder


def test_image_of_a_run_is_read_from_its_media_folder(tmp_path, media):
    folders = Folders.from_flags(flags(str(tmp_path / "logs")))
    assert folders.image("exp/dse", "media/1.png") == (PNG, "image/png")


def test_logdir_spec_is_understood(tmp_path, media):
    logs = tmp_path / "logs"
    named = Folders.from_flags(flags(logdir_spec=f"mine:{logs},gs://bucket/x,{tmp_path / 'nothing'}"))
    assert named.image("mine/exp/dse", "media/1.png") is not None
    assert named.image("exp/dse", "media/1.png") is None
    direct = Folders.from_flags(flags(logdir_spec=f"run:{logs / 'exp' / 'dse'}"))
    assert direct.image("run", "media/1.png") is not None
    assert direct.image("runner", "media/1.png") is None


@pytest.mark.parametrize(
    ("run", "file"),
    [
        ("exp/dse", "media/../media/1.png"),
        ("exp/dse", "../../../secret.png"),
        ("exp/dse", "media/..png"),
        ("exp/dse", "media/.1.png"),
        ("exp/dse", "media/1.png\n"),
        ("exp/dse", "1.png"),
        ("exp/dse", "media/1.txt"),
        ("exp/dse", ""),
        ("../logs/exp/dse", "media/1.png"),
        ("/etc", "media/1.png"),
        ("exp/other", "media/1.png"),
    ],
)
def test_paths_that_leave_the_media_folder_are_refused(tmp_path, media, run, file):
    assert Folders.from_flags(flags(str(tmp_path / "logs"))).image(run, file) is None


def test_links_out_of_the_media_folder_are_refused(tmp_path, media):
    (media / "2.png").symlink_to(tmp_path / "secret.png")
    (media / "3.png").symlink_to(media / "1.png")
    folders = Folders.from_flags(flags(str(tmp_path / "logs")))
    assert folders.image("exp/dse", "media/2.png") is None
    assert folders.image("exp/dse", "media/3.png") is not None


def test_a_file_that_is_no_image_is_refused_whatever_its_name(tmp_path, media):
    (media / "4.png").write_bytes(b"<svg onload=alert(1)>")
    (media / "5.png").write_bytes(PNG + b"\0" * (5 << 20))
    folders = Folders.from_flags(flags(str(tmp_path / "logs")))
    assert folders.image("exp/dse", "media/4.png") is None
    assert folders.image("exp/dse", "media/5.png") is None
