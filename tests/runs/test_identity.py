"""Equal content is recognised under any name; different content never passes for equal."""

import os
import tracemalloc

import pytest
from watch_fakes import write_checkpoint

from dse_monitor.runs.identity import Stamp, content_key, look, stamp
from dse_monitor.watch.files.mounts import filesystem, is_network, settle_seconds
from dse_monitor.watch.files.versions import Versions

pytestmark = pytest.mark.fast


def test_copy_and_resaved_file_have_one_key_and_other_content_another(tmp_path):
    one = content_key(write_checkpoint(tmp_path / "checkpoint0001.pth", epoch=1, value=3))
    assert one is not None
    assert content_key(write_checkpoint(tmp_path / "last.pth", epoch=1, value=3)) == one
    assert content_key(write_checkpoint(tmp_path / "a.pth", epoch=2, value=3)) != one
    assert content_key(write_checkpoint(tmp_path / "b.pth", epoch=1, value=4)) != one


def test_key_is_refused_where_checksums_are_not_real(tmp_path):
    torch = pytest.importorskip("torch")
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save({"w": torch.zeros(4)}, tmp_path / "c.pth")
        torch.serialization.set_crc32_options(True)
        torch.save({"w": torch.zeros(4)}, tmp_path / "d.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert content_key(tmp_path / "c.pth") is None
    assert content_key(tmp_path / "d.pth") is not None


@pytest.mark.parametrize("content", [b"", b"PK", b"a note", b"PK\x05\x06" + bytes(18)])
def test_file_that_is_no_zip_of_torch_has_no_key(tmp_path, content):
    (tmp_path / "c.pth").write_bytes(content)
    assert content_key(tmp_path / "c.pth") is None


def test_missing_file_has_no_key_and_no_stamp(tmp_path):
    assert content_key(tmp_path / "c.pth") is None
    with pytest.raises(FileNotFoundError):
        look(tmp_path / "c.pth")


def test_named_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "c.pth")
    assert look(tmp_path / "c.pth").size == 0


def test_stamp_of_a_folder_covers_all_files_in_it(tmp_path):
    folder = tmp_path / "step-1"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "x").write_text("12345")
    before = stamp(folder)
    assert before.size == 5
    assert look(folder) == before
    (folder / "a" / "x").write_text("123456")
    assert not stamp(folder).same_version(before)


def test_links_and_renames_are_the_same_version_and_a_restored_time_is_not_trusted(tmp_path):
    path = write_checkpoint(tmp_path / "c.pth")
    versions, mark = Versions(), look(path)
    versions.add("c.pth", mark, 7)
    assert versions.find("c.pth", mark) == 7
    os.link(path, tmp_path / "last.pth")
    assert versions.find("c.pth", look(path)) == 7
    assert versions.find("last.pth", look(tmp_path / "last.pth")) == 7
    (tmp_path / "last.pth").unlink()
    path.rename(tmp_path / "d.pth")
    assert versions.find("d.pth", look(tmp_path / "d.pth")) == 7
    os.chmod(tmp_path / "d.pth", 0o600)
    (tmp_path / "d.pth").rename(path)
    assert versions.find("c.pth", look(path)) is None


def test_crashes_are_counted_by_content():
    versions, one, other = Versions(), Stamp(1, 2, 3, 4), Stamp(5, 6, 7, 8)
    assert versions.crashed(one, "key") == 1
    assert versions.crashed(other, "key") == 2
    assert versions.crashed(one, None) == 1


def test_ten_thousand_versions_are_all_found_in_little_memory(evaluation):
    versions = Versions()
    tracemalloc.start()
    try:
        for k in range(10_000):
            versions.add(f"c{k}.pth", Stamp(k, 8, k, -1 if k % 2 else 1 << 70), k + 1, content_key=f"key {k}")
            versions.add_content(evaluation(f"c{k}.pth", content=f"{k // 2:064x}", seq=k + 1))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 1.5 * 2**20
    for k in range(0, 10_000, 77):
        assert versions.find(f"c{k}.pth", Stamp(k, 8, k, -1 if k % 2 else 1 << 70)) == k + 1
        assert versions.find("other.pth", Stamp(k, 9, k, 1)) is None
        assert versions.find_key(f"key {k}") == k + 1
        twins = versions.find_content(evaluation("c.pth", content=f"{k // 2:064x}"))
        assert twins == [k // 2 * 2 + 1, k // 2 * 2 + 2]


def test_a_version_dealt_with_again_belongs_to_the_newer_evaluation():
    versions, mark = Versions(), Stamp(1, 2, 3, 4)
    versions.add("a.pth", mark, 1, "key")
    versions.add("a.pth", mark, 5, "key")
    assert versions.find("a.pth", mark) == 5
    assert versions.find_key("key") == 5


MOUNTINFO = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /data rw - nfs4 server:/data rw
31 30 8:2 / /data/local\040disk rw - xfs /dev/sdb rw
32 22 0:41 / /scratch rw - lustre mgs@tcp:/fs rw
33 22 0:42 / /mnt/s rw - fuse.sshfs host: rw
34 22 0:43 / /odd rw - strangefs none rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "network", "settle"),
    [
        ("/home/a", "ext4", False, 2.0),
        ("/data/run", "nfs4", True, 15.0),
        ("/database", "ext4", False, 2.0),
        ("/data/local disk/run", "xfs", False, 2.0),
        ("/scratch", "lustre", True, 15.0),
        ("/mnt/s/x", "fuse.sshfs", True, 15.0),
        ("/odd/x", "strangefs", False, 5.0),
    ],
)
def test_filesystem_is_that_of_the_longest_mount_point(tmp_path, path, kind, network, settle):
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTINFO)
    assert filesystem(path, table) == kind
    assert is_network(kind) == network
    assert settle_seconds(kind) == settle


def test_without_a_mount_table_the_filesystem_is_unknown(tmp_path):
    assert filesystem("/data", tmp_path / "none") == ""
    assert settle_seconds("") == 5.0
