"""A file that is not whole is never taken for one, wherever it was cut, holed, mixed or continued."""

import json
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dse_monitor.checkpoints.archive import TensorRef, check_complete, open_archive, walk
from dse_monitor.errors import CheckpointError, CorruptCheckpoint, IncompleteCheckpoint

DATA = Path(__file__).resolve().parents[1] / "data" / "checkpoints"


def state(epoch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(epoch)
    return {f"layer.{k}": torch.randn(40, 30, generator=generator) for k in range(12)}


def write(path: Path, kind: str, epoch: int = 1) -> bytes:
    if kind == "safetensors":
        safetensors.torch.save_file(state(epoch), path)
    else:
        value = {"epoch": epoch, "model": state(epoch)}
        torch.save(value, path, _use_new_zipfile_serialization=kind == "zip")
    return path.read_bytes()


def read_all(path: Path) -> None:
    with open_archive(path) as archive:
        archive.read([ref for _, ref in walk(archive.tree) if isinstance(ref, TensorRef)])
        archive.verify_unchanged()


KINDS = ("zip", "legacy", "safetensors")


def cuts(size: int) -> list[int]:
    """Twenty sizes: the first bytes, even steps, the last bytes."""
    return sorted(
        {
            0,
            1,
            2,
            3,
            4,
            8,
            9,
            15,
            size - 1,
            size - 2,
            size - 21,
            size - 22,
            *(size * k // 9 for k in range(1, 9)),
        }
    )


@pytest.mark.parametrize("kind", KINDS)
def test_cut_file_is_incomplete_at_every_size(tmp_path, kind):
    path = tmp_path / "model.pth"
    data = write(path, kind)
    assert check_complete(path).whole
    assert len(cuts(len(data))) == 20
    for size in cuts(len(data)):
        path.write_bytes(data[:size])
        found = check_complete(path)
        assert not found.whole, size
        assert str(path) in found.reason
        with pytest.raises(IncompleteCheckpoint) as caught:
            open_archive(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_small_file_is_incomplete_at_every_cut(tmp_path, kind):
    path = tmp_path / "model.pth"
    value = {"w": torch.ones(2)}
    if kind == "safetensors":
        safetensors.torch.save_file(value, path)
    else:
        torch.save(value, path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        assert not check_complete(path).whole, size


@pytest.mark.parametrize("kind", KINDS)
def test_file_of_zeros_is_incomplete(tmp_path, kind):
    path = tmp_path / "model.pth"
    path.write_bytes(bytes(len(write(path, kind))))
    assert "zero bytes" in check_complete(path).reason
    with pytest.raises(IncompleteCheckpoint, match="zero bytes"):
        open_archive(path)


@pytest.mark.parametrize("kind", KINDS)
def test_file_with_bytes_behind_its_end_is_not_whole(tmp_path, kind):
    path = tmp_path / "model.pth"
    path.write_bytes(write(path, kind) + bytes(1000))
    assert not check_complete(path).whole
    with pytest.raises(CheckpointError):
        open_archive(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["zip"])
def test_mix_of_two_checkpoints_is_corrupt_on_reading(tmp_path, kind, share):
    path = tmp_path / "model.pth"
    old, new = write(path, kind, epoch=3), write(path, kind, epoch=4)
    assert len(old) == len(new)
    edge = int(share * len(new))
    path.write_bytes(new[:edge] + old[edge:])
    assert check_complete(path).whole  # its end is there
    with pytest.raises(CorruptCheckpoint, match="checksum") as caught:
        read_all(path)
    assert "mixed" in str(caught.value)


def holes(data: bytes) -> list[int]:
    return [len(data) * k // 8 for k in range(1, 7)]


def test_hole_in_a_zip_is_corrupt_and_names_the_record(tmp_path):
    path = tmp_path / "model.pth"
    data = write(path, "zip")
    for place in holes(data):
        path.write_bytes(data[:place] + bytes(4096) + data[place + 4096 :])
        with pytest.raises(CorruptCheckpoint, match=r"record '.*data"):
            read_all(path)


def test_flipped_byte_in_every_record_is_found(tmp_path):
    path = tmp_path / "model.pth"
    data = write(path, "zip")
    with zipfile.ZipFile(path) as archive:
        places = {
            item.filename: item.header_offset for item in archive.infolist() if "/data/" in item.filename
        }
    assert len(places) == 12
    for name, header in places.items():
        broken = bytearray(data)
        broken[header + 2000] ^= 1
        path.write_bytes(broken)
        with pytest.raises(CorruptCheckpoint, match=f"record '{name}'"):
            read_all(path)


def test_flipped_byte_in_the_pickle_is_found(tmp_path):
    path = tmp_path / "model.pth"
    data = bytearray(write(path, "zip"))
    data[data.index(b"layer.7") + 6] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptCheckpoint, match=r"data\.pkl.*checksum"):
        open_archive(path)


def test_missing_checksums_are_not_taken_for_damage_nor_damage_for_missing_ones(tmp_path):
    path = tmp_path / "model.pth"
    torch.serialization.set_crc32_options(False)
    try:
        data = bytearray(write(path, "zip"))
    finally:
        torch.serialization.set_crc32_options(True)
    read_all(path)
    place = data.index(b"little")
    data[place : place + 6] = bytes(6)
    path.write_bytes(data)
    with pytest.raises(CorruptCheckpoint, match="checksum"):
        open_archive(path)


def test_file_without_an_end_is_told_from_one_of_another_kind(tmp_path):
    path = tmp_path / "notes.pth"
    path.write_text("not a checkpoint at all\n" * 10)
    found = check_complete(path)
    assert (found.whole, found.container, found.has_end_marker) == (True, "", False)
    assert "is text" in found.reason


def test_missing_path_is_a_reason_and_not_an_error(tmp_path):
    assert "No such file" in check_complete(tmp_path / "gone.pth").reason
    (tmp_path / "dangling.pth").symlink_to(tmp_path / "gone.pth")
    assert not check_complete(tmp_path / "dangling.pth").whole


# Folders


def test_index_waits_for_every_shard(tmp_path):
    weight_map = {name: f"model-{k % 3}.safetensors" for k, name in enumerate(state(1))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for shard in range(3):
        assert "missing" in check_complete(tmp_path).reason
        part = {
            name: tensor
            for name, tensor in state(1).items()
            if weight_map[name] == f"model-{shard}.safetensors"
        }
        safetensors.torch.save_file(part, tmp_path / f"model-{shard}.safetensors")
    assert check_complete(tmp_path).whole
    last = tmp_path / "model-2.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    assert "model-2.safetensors" in check_complete(tmp_path).reason


def test_trainer_folder_waits_for_its_state(tmp_path):
    folder = tmp_path / "checkpoint-500"
    folder.mkdir()
    safetensors.torch.save_file(state(1), folder / "model.safetensors")
    (folder / "training_args.bin").write_bytes(b"x")
    assert "trainer_state.json" in check_complete(folder).reason
    (folder / "trainer_state.json").write_text('{"global_step": 50')
    assert not check_complete(folder).whole
    (folder / "trainer_state.json").write_text('{"global_step": 500, "epoch": 1.5}')
    assert check_complete(folder).whole
    with open_archive(folder) as archive:
        assert archive.sidecars["trainer_state.json"]["global_step"] == 500


def copy_ranks(folder: Path) -> None:
    for path in (DATA / "two_ranks").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


def test_distributed_folder_is_whole_only_with_its_metadata(tmp_path):
    copy_ranks(tmp_path)
    assert check_complete(tmp_path).whole
    metadata = (tmp_path / ".metadata").read_bytes()
    (tmp_path / ".metadata").rename(tmp_path / ".metadata.tmp")
    found = check_complete(tmp_path)
    assert (found.whole, found.container) == (False, "torch.distributed.checkpoint")
    assert "no .metadata yet" in found.reason
    for size in (0, 1, 100, len(metadata) // 2, len(metadata) - 1):
        (tmp_path / ".metadata").write_bytes(metadata[:size])
        assert not check_complete(tmp_path).whole
        with pytest.raises(IncompleteCheckpoint):
            open_archive(tmp_path)


def test_distributed_folder_with_a_short_or_missing_file_is_incomplete(tmp_path):
    copy_ranks(tmp_path)
    rank = tmp_path / "__1_0.distcp"
    data = rank.read_bytes()
    rank.write_bytes(data[:-1])
    assert "__1_0.distcp" in check_complete(tmp_path).reason
    rank.unlink()
    assert "__1_0.distcp" in check_complete(tmp_path).reason
    with pytest.raises(IncompleteCheckpoint):
        open_archive(tmp_path)
