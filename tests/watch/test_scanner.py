"""The scanner finds what may be a checkpoint, whatever happens to the folder."""

import errno
import os

import pytest

from dse_monitor.checkpoints.names import is_candidate, is_rolling
from dse_monitor.watch.files import scanner as module
from dse_monitor.watch.files.scanner import Scanner

pytestmark = pytest.mark.fast


@pytest.fixture
def root(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def _scanner(root, **options):
    return Scanner(root, is_candidate, is_rolling, **options)


def _touch(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_only_candidates_are_reported_and_each_version_once(root):
    for name in ("checkpoint0001.pth", "log.txt", "optimizer.pt", "a/b/model_1.pth", ".hidden.pth"):
        _touch(root / name)
    scanner = _scanner(root)
    assert set(scanner.scan().changed) == {"checkpoint0001.pth", "a/b/model_1.pth"}
    assert scanner.scan().changed == {}
    _touch(root / "checkpoint0001.pth", "longer")
    assert set(scanner.scan().changed) == {"checkpoint0001.pth"}


def test_removed_file_is_reported_and_found_again_when_it_returns(root):
    file = _touch(root / "checkpoint0001.pth")
    scanner = _scanner(root)
    scanner.scan()
    file.unlink()
    assert scanner.scan().vanished == ("checkpoint0001.pth",)
    assert scanner.count == 0
    _touch(file)
    assert set(scanner.scan().changed) == {"checkpoint0001.pth"}


def test_rewrite_with_size_and_time_restored_is_noticed(root):
    file = _touch(root / "checkpoint0001.pth", "aaaa")
    before = file.stat()
    scanner = _scanner(root)
    scanner.scan()
    file.write_text("bbbb")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert set(scanner.scan().changed) == {"checkpoint0001.pth"}


@pytest.mark.parametrize("offset", [365 * 86400, -50 * 365 * 86400])
def test_file_times_from_another_clock_do_not_matter(root, offset):
    file = _touch(root / "checkpoint0001.pth")
    os.utime(file, (file.stat().st_mtime + offset,) * 2)
    assert set(_scanner(root).scan().changed) == {"checkpoint0001.pth"}


def test_shallow_scan_leaves_known_files_alone_but_sees_new_replaced_and_rolling_ones(root, monkeypatch):
    for name in ("checkpoint0001.pth", "checkpoint0002.pth", "checkpoint.pth"):
        _touch(root / name)
    scanner = _scanner(root)
    scanner.scan()
    looked_at = []
    real = module.stamp_from_stat
    monkeypatch.setattr(
        module, "stamp_from_stat", lambda found: looked_at.append(found.st_ino) or real(found)
    )
    assert scanner.scan(deep=False).changed == {}
    assert looked_at == [(root / "checkpoint.pth").stat().st_ino]
    _touch(root / "new")
    (root / "new").rename(root / "checkpoint0001.pth")
    _touch(root / "checkpoint0003.pth")
    assert set(scanner.scan(deep=False).changed) == {"checkpoint0001.pth", "checkpoint0003.pth"}


def test_file_pointed_out_is_looked_at_again(root):
    _touch(root / "checkpoint0001.pth")
    scanner = _scanner(root)
    scanner.scan()
    scanner.missed("checkpoint0001.pth")
    assert set(scanner.scan(deep=False).changed) == {"checkpoint0001.pth"}


def test_links_to_ancestors_end_and_files_reached_twice_are_found_under_their_own_name(root):
    _touch(root / "sub" / "checkpoint0001.pth")
    (root / "sub" / "loop").symlink_to(root)
    (root / "also").symlink_to(root / "sub")
    (root / "dangling.pth").symlink_to(root / "nowhere")
    (root / "itself.pth").symlink_to(root / "itself.pth")
    scan = _scanner(root).scan()
    assert set(scan.changed) == {"sub/checkpoint0001.pth"}


def test_swapped_symlink_is_a_new_version(root):
    _touch(root / "a" / "checkpoint0001.pth", "one")
    _touch(root / "b.bin.txt", "other")
    link = root / "latest.pth"
    link.symlink_to(root / "a" / "checkpoint0001.pth")
    scanner = _scanner(root)
    scanner.scan()
    (root / "draft").symlink_to(root / "b.bin.txt")
    (root / "draft").rename(link)
    assert set(scanner.scan(deep=False).changed) == {"latest.pth"}


def test_own_output_is_not_searched_and_depth_has_no_limit(root):
    _touch(root / "dse" / "keep" / "checkpoint0001.pth")
    _touch(root / "1" / "2" / "3" / "4" / "checkpoint0002.pth")
    _touch(root / "1" / "2" / "3" / "4" / "5" / "checkpoint0003.pth")
    scan = _scanner(root, skip=root / "dse").scan()
    assert set(scan.changed) == {"1/2/3/4/checkpoint0002.pth", "1/2/3/4/5/checkpoint0003.pth"}


def test_folder_of_shards_is_one_candidate(root):
    _touch(root / "anything" / ".metadata")
    _touch(root / "anything" / "__0_0.distcp")
    _touch(root / "step-1000" / "part")
    scanner = _scanner(root)
    assert set(scanner.scan().changed) == {"anything", "step-1000"}
    _touch(root / "anything" / "__1_0.distcp")
    assert set(scanner.scan().changed) == {"anything"}


def test_missing_root_is_waited_for_and_a_replaced_one_noticed(tmp_path):
    root = tmp_path / "run"
    scanner = _scanner(root)
    assert scanner.scan().state == "missing"
    _touch(root / "checkpoint0001.pth")
    assert set(scanner.scan().changed) == {"checkpoint0001.pth"}
    root.rename(tmp_path / "elsewhere")
    gone = scanner.scan()
    assert (gone.state, gone.vanished) == ("missing", ("checkpoint0001.pth",))
    _touch(root / "checkpoint0001.pth")
    back = scanner.scan()
    assert back.replaced
    assert set(back.changed) == {"checkpoint0001.pth"}


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_folder_that_cannot_be_read_for_a_while_loses_nothing(root, monkeypatch, number):
    _touch(root / "checkpoint0001.pth")
    _touch(root / "sub" / "checkpoint0002.pth")
    scanner = _scanner(root)
    scanner.scan()
    real = os.scandir

    def refuse_all(path):
        raise OSError(number, os.strerror(number))

    def refuse_sub(path):
        return refuse_all(path) if os.fspath(path).endswith("sub") else real(path)

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "scandir", refuse_all)
        for _ in range(3):
            scan = scanner.scan()
            assert (scan.state, scan.changed, scan.vanished) == ("unreachable", {}, ())
        patch.setattr(module.os, "scandir", refuse_sub)
        assert scanner.scan().vanished == ()
    assert scanner.scan() == module.Scan()


def test_too_many_entries_are_said_and_nothing_is_taken_for_removed(root):
    for number in range(10):
        _touch(root / f"checkpoint{number:04d}.pth")
    scanner = _scanner(root, entry_limit=4)
    scan = scanner.scan()
    assert scan.unlooked == ". (too many entries)"
    assert len(scan.changed) == 4
    assert scanner.scan().vanished == ()
