"""What torch and safetensors write is read back bit for bit, from every container."""

import argparse
import dataclasses
import json
import os
import stat
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from dse_monitor.checkpoints.archive import (
    Opaque,
    TensorRef,
    attributes,
    check_complete,
    module_state,
    open_archive,
    walk,
)
from dse_monitor.errors import CheckpointError, CorruptCheckpoint, IncompleteCheckpoint, UnsafeCheckpoint

DATA = Path(__file__).resolve().parents[1] / "data" / "checkpoints"


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint by dotted name, as torch sees the bytes we read."""
    with open_archive(path) as archive:
        refs = {
            ".".join(map(str, keys)): ref for keys, ref in walk(archive.tree) if isinstance(ref, TensorRef)
        }
        read = dict(zip(refs, archive.read(list(refs.values())), strict=True))
        archive.verify_unchanged()
    return {name: as_torch(refs[name], read[name]) for name in refs}


def as_torch(ref: TensorRef, data: bytearray) -> torch.Tensor:
    assert len(data) == ref.nbytes
    dtype = getattr(torch, ref.dtype)
    return (
        torch.frombuffer(data, dtype=dtype).reshape(ref.shape)
        if data
        else torch.empty(ref.shape, dtype=dtype)
    )


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Equal to the bit (NaN included), shape and type too."""
    wanted = wanted.detach().contiguous()
    if (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
        return False
    return found.numel() == 0 or found.contiguous().view(-1).view(torch.uint8).equal(
        wanted.view(-1).view(torch.uint8)
    )


def varied() -> dict[str, torch.Tensor]:
    """Tensors of every element type and kind of view."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    plain = (torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128)
    whole = (
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.uint16,
        torch.uint32,
    )
    small = (torch.float8_e4m3fn, torch.float8_e5m2)
    made = {str(dtype).removeprefix("torch."): base.to(dtype) for dtype in (*plain, *small)}
    made |= {str(dtype).removeprefix("torch."): (base * 9).abs().to(dtype) for dtype in whole}
    made |= {
        "transposed": base.t(),
        "rows": base[1:3],
        "every other": base[::2, 1::2],
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "repeated": torch.ones(1).expand(5, 2),
        "channels last": torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(base.clone()),
        "nan": torch.tensor([float("nan"), float("inf")]),
    }
    return made


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_of_torch_save_are_read_to_the_bit(tmp_path, legacy, protocol):
    wanted = varied()
    path = tmp_path / "model.any"
    torch.save(wanted, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    found = tensors(path)
    assert {name: same(found[name], wanted[name]) for name in wanted} == dict.fromkeys(wanted, True)
    assert check_complete(path) == dataclasses.replace(
        check_complete(path),
        whole=True,
        container="torch legacy" if legacy else "torch zip",
        reason="",
        has_end_marker=True,
    )


def test_tensors_of_safetensors_are_read_to_the_bit(tmp_path):
    skip = ("complex128",)
    wanted = {name: tensor.detach().contiguous() for name, tensor in varied().items() if name not in skip}
    path = tmp_path / "model.pth"  # the suffix does not matter
    safetensors.torch.save_file(wanted, path, metadata={"format": "pt", "epoch": "3"})
    found = tensors(path)
    assert {name: same(found[name], wanted[name]) for name in wanted} == dict.fromkeys(wanted, True)
    with open_archive(path) as archive:
        assert archive.container == "safetensors"
        assert archive.metadata == {"format": "pt", "epoch": "3"}


@pytest.mark.parametrize("length", [0x0280, 0x0480, 0x4B50, 0x0189])
def test_safetensors_is_known_whatever_its_length_looks_like(tmp_path, length):
    # The first two bytes of the length are those of pickles, zips and HDF5 files.
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode().ljust(length)
    data = np.ones(2, np.float32).tobytes()
    (tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + header + data)
    assert tensors(tmp_path / "a.safetensors")["w"].equal(torch.ones(2))


def test_tensors_sharing_a_storage_are_read_in_one_pass_each_right(tmp_path):
    base = torch.arange(24.0)
    wanted = {"whole": base, "head": base[:5], "tail": base[20:], "columns": base.view(4, 6)[:, 2]}
    torch.save(wanted, tmp_path / "a.pth")
    found = tensors(tmp_path / "a.pth")
    assert all(same(found[name], wanted[name]) for name in wanted)


def test_many_large_records_are_read_in_parallel_and_checked(tmp_path):
    wanted = {str(k): torch.full((1 << 21,), float(k)) for k in range(6)}  # 48 MB
    torch.save(wanted, tmp_path / "a.pth")
    found = tensors(tmp_path / "a.pth")
    assert all(found[name].equal(wanted[name]) for name in wanted)
    flip(tmp_path / "a.pth", b"\0\0\x80\x3f" * 1000, offset=4000)
    with pytest.raises(CorruptCheckpoint, match="checksum"):
        tensors(tmp_path / "a.pth")


def flip(path: Path, pattern: bytes, offset: int = 0) -> None:
    """Invert one byte of the file, some way into the first occurrence of a pattern."""
    data = bytearray(path.read_bytes())
    place = data.index(pattern) + offset
    data[place] ^= 0xFF
    path.write_bytes(data)


class Custom:
    """A class the reader's side does not have to know."""


def contents() -> dict[str, object]:
    """Kinds of values found in real checkpoints beside tensors, one by one."""
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    custom = Custom()
    custom.value = 3
    return {
        "arguments": argparse.Namespace(arch="vit_small", lr=0.1),
        "numpy epoch": np.int64(3),
        "numpy array": np.arange(3),
        "numpy random state": np.random.RandomState(0).get_state(),
        "torch random state": torch.get_rng_state(),
        "path": Path("a/b"),
        "dtype": torch.float32,
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "optimizer": optimizer.state_dict(),
        "module": module,
        "custom": custom,
        "function": torch.nn.functional.relu,
        "slice": slice(1, 2),
        "set": {1, 2},
        "huge": 1 << 5000,
        "metadata": module.state_dict(),
        "range": range(3),
        "exception": ValueError("x"),
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", contents())
def test_whatever_lies_beside_the_weights_does_not_hinder(tmp_path, kind, legacy):
    weights = {"w": torch.ones(3)}
    torch.save(
        {kind: contents()[kind], "model": weights},
        tmp_path / "a.pth",
        _use_new_zipfile_serialization=not legacy,
    )
    assert tensors(tmp_path / "a.pth")["model.w"].equal(weights["w"])


def test_values_beside_the_weights_are_named_and_plain(tmp_path):
    torch.save(contents(), tmp_path / "a.pth")
    with open_archive(tmp_path / "a.pth") as archive:
        tree = archive.tree
    assert attributes(tree["arguments"]) == {"arch": "vit_small", "lr": 0.1}
    assert tree["numpy epoch"] == 3
    assert type(tree["numpy epoch"]) is int
    assert tree["size"] == (1, 2)
    assert tree["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)
    assert tree["dtype"].name == "torch.float32"
    assert tree["custom"].name.endswith("Custom")
    assert tree["custom"].state == {"value": 3}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_state_dict_of_a_whole_module_is_found(tmp_path, legacy):
    module = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3)))
    module.register_buffer("hidden", torch.ones(1), persistent=False)
    module.itself = [module]  # a cycle, as trainers make them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch could not get the source of a class
        torch.save(module, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    with open_archive(tmp_path / "a.pth") as archive:
        state = module_state(archive.tree)
        found = {name: as_torch(ref, archive.read([ref])[0]) for name, ref in state.items()}
    wanted = module.state_dict()
    assert list(found) == list(wanted)
    assert all(same(found[name], wanted[name]) for name in wanted)


def unusual() -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8)
        return {
            "quantised": quantised,
            "sparse": torch.eye(3).to_sparse(),
            "compressed": torch.eye(3).to_sparse_csr(),
            "meta": torch.empty(3, device="meta"),
            "conjugated": torch.ones(2, dtype=torch.complex64).conj(),
        }


@pytest.mark.parametrize("kind", ["quantised", "sparse", "compressed", "meta", "conjugated"])
def test_unusual_tensors_are_described_and_the_rest_is_read(tmp_path, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"odd": unusual()[kind], "w": torch.ones(2)}, tmp_path / "a.pth")
    with open_archive(tmp_path / "a.pth") as archive:
        assert isinstance(archive.tree["odd"], Opaque)
        assert archive.tree["odd"].note.startswith("not built: ")
        assert any("not built" in note for note in archive.notes)
    assert tensors(tmp_path / "a.pth")["w"].equal(torch.ones(2))


def test_big_endian_files_are_turned_round(tmp_path):
    wanted = {"f": torch.randn(3), "h": torch.randn(3).half(), "c": torch.randn(2, dtype=torch.complex64)}
    torch.save(wanted, tmp_path / "a.pth")
    turned = {k: torch.from_numpy(v.numpy().copy()) for k, v in wanted.items()}
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename.endswith("byteorder"):
                data = b"big"
            if "/data/" in item.filename:
                size = {"0": 4, "1": 2, "2": 4}[item.filename.rsplit("/", 1)[1]]
                data = np.frombuffer(data, f"u{size}").byteswap().tobytes()
            new.writestr(item.filename, data)
    found = tensors(tmp_path / "b.pth")
    assert all(same(found[name], turned[name]) for name in wanted)


def test_deflated_archive_is_read(tmp_path):
    torch.save({"w": torch.arange(1000.0)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for item in old.infolist():
            new.writestr(item.filename, old.read(item))
    assert tensors(tmp_path / "b.pth")["w"].equal(torch.arange(1000.0))


def test_file_without_checksums_is_read_with_a_note(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert tensors(tmp_path / "a.pth")["w"].equal(torch.ones(3))
    with open_archive(tmp_path / "a.pth") as archive:
        assert any("without checksums" in note for note in archive.notes)


# Folders


def test_hugging_face_folder_with_shards_and_description(tmp_path):
    wanted = {f"layer.{k}": torch.full((3,), float(k)) for k in range(4)}
    for part in range(2):
        names = [f"layer.{2 * part}", f"layer.{2 * part + 1}"]
        safetensors.torch.save_file(
            {n: wanted[n] for n in names}, tmp_path / f"model-0000{part + 1}-of-00002.safetensors"
        )
    weight_map = {name: f"model-0000{k // 2 + 1}-of-00002.safetensors" for k, name in enumerate(wanted)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text('{"model_type": "vit", "num_attention_heads": 6}')
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        found = tensors(path)
        assert all(same(found[name], wanted[name]) for name in wanted)
        assert check_complete(path).whole
        with open_archive(path) as archive:
            assert archive.config["num_attention_heads"] == 6


def test_hugging_face_folder_of_torch_files(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert tensors(tmp_path)["w"].equal(torch.ones(2))
    with open_archive(tmp_path / "pytorch_model.bin") as archive:
        assert archive.config == {"model_type": "vit"}


def test_index_that_promises_too_much_is_corrupt(tmp_path):
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    index = {"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptCheckpoint, match="promises 2 tensors, 1 are in no shard"):
        open_archive(tmp_path)


def test_distributed_checkpoint_of_two_ranks_is_put_together():
    wanted = torch.load(DATA / "two_ranks_whole.pt", weights_only=True)
    found = tensors(DATA / "two_ranks")
    assert {name: same(found[f"model.{name}"], wanted[name]) for name in wanted} == dict.fromkeys(
        wanted, True
    )
    with open_archive(DATA / "two_ranks") as archive:
        assert archive.container == "torch.distributed.checkpoint"
        assert archive.tree["iteration"] == 1249
        assert archive.tree["optimizer"]["param_groups"][0]["lr"] == 1e-3


def test_distributed_checkpoint_of_one_process_is_read(tmp_path):
    import torch.distributed.checkpoint as dcp

    state = {"model": {"w": torch.randn(3, 4), "half": torch.ones(2).half()}, "step": 7}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=str(tmp_path / "ckpt"))
    found = tensors(tmp_path / "ckpt")
    assert all(same(found[f"model.{name}"], state["model"][name]) for name in state["model"])


def test_damaged_piece_of_a_distributed_checkpoint_is_found(tmp_path):
    for path in (DATA / "two_ranks").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = torch.load(DATA / "two_ranks_whole.pt", weights_only=True)
    flip(tmp_path / "__0_0.distcp", whole["backbone.blocks.0.weight"][:3].numpy().tobytes(), offset=5)
    with pytest.raises(CorruptCheckpoint, match="checksum"):
        tensors(tmp_path)


@pytest.mark.parametrize("kind", ["DeepSpeed", "Megatron"])
def test_rank_folder_with_the_whole_network_is_read_and_a_spread_one_refused(tmp_path, kind):
    folder, files, marker = {
        "DeepSpeed": ("global_step10", "mp_rank_{:02}_model_states.pt", "latest"),
        "Megatron": ("iter_0000010", "mp_rank_{:02}/model_optim_rng.pt", "latest_checkpointed_iteration.txt"),
    }[kind]
    for rank in range(2):
        path = tmp_path / folder / files.format(rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"module": {"w": torch.ones(2)}, "iteration": 10}, path)
        if rank == 0:
            (tmp_path / marker).write_text(folder if kind == "DeepSpeed" else "10")
            assert tensors(tmp_path / folder)["module.w"].equal(torch.ones(2))
            assert check_complete(tmp_path / folder).has_end_marker
            (tmp_path / marker).write_text("global_step5" if kind == "DeepSpeed" else "5")
            assert "not finished" in check_complete(tmp_path / folder).reason
    with pytest.raises(CheckpointError, match=r"2 rank files.*join them"):
        open_archive(tmp_path / folder)


def test_partitioned_parameters_are_refused_with_advice(tmp_path):
    torch.save({"module": {}}, tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match=r"ZeRO stage 3.*zero_to_fp32"):
        open_archive(tmp_path)


# What is refused


def test_shard_list_is_reported(tmp_path):
    torch.save({"type": "shard_list", "shard_list": ["a_shard0.torch"]}, tmp_path / "model.torch")
    with pytest.raises(CheckpointError, match=r"VISSL shard_list.*1 shard files.*consolidate"):
        open_archive(tmp_path / "model.torch")


def test_torchscript_is_refused_with_advice(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"a/{name}", b"\x80\x02}.")
    with pytest.raises(CheckpointError, match=r"TorchScript.*state_dict"):
        open_archive(tmp_path / "a.pt")
    assert check_complete(tmp_path / "a.pt").whole


def tar_file(path: Path) -> None:
    import tarfile

    (path.parent / "pickle").write_bytes(b"\x80\x02}.")
    with tarfile.open(path, "w") as archive:
        archive.add(path.parent / "pickle", "pickle")


FOREIGN = {
    "tar": (tar_file, "legacy tar", "tar file.*save its weights again"),
    "npz": (lambda path: np.savez(path.open("wb"), a=np.ones(3)), "torch zip", r"\.npz.*safetensors"),
    "npy": (lambda path: np.save(path.open("wb"), np.ones(30)), "NumPy array", r"\.npy.*safetensors"),
    "hdf5": (lambda path: path.write_bytes(hdf5(2048)), "HDF5", "HDF5.*Keras.*safetensors"),
    "pickle": (
        lambda path: path.write_bytes(b"\x80\x04}\x94" + b"." * 80),
        "plain pickle",
        "torch.save did not write",
    ),
    "text": (lambda path: path.write_text("epoch,loss\n" * 50), "", "is text .*epoch,lo"),
}


def hdf5(end: int) -> bytes:
    """A superblock of version 0 that ends where it says, and nothing in the file."""
    head = b"\x89HDF\r\n\x1a\n" + bytes([0, 0, 0, 0, 0, 8, 8, 0]) + bytes(8)
    return (head + bytes(16) + end.to_bytes(8, "little")).ljust(2048, b"\0")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_file_is_recognised_and_refused_with_advice(tmp_path, kind):
    write, container, says = FOREIGN[kind]
    path = tmp_path / "model.pth"
    write(path)
    found = check_complete(path)
    assert found.whole
    assert found.container == container
    with pytest.raises(CheckpointError, match=says) as caught:
        open_archive(path)
    assert str(path) in str(caught.value)


def test_cut_hdf5_is_not_whole(tmp_path):
    (tmp_path / "a.h5").write_bytes(hdf5(4096))
    assert "superblock says 4096" in check_complete(tmp_path / "a.h5").reason


def test_tensorflow_checkpoint_needs_all_its_parts(tmp_path):
    index = tmp_path / "model.ckpt-5.index"
    index.write_bytes(bytes(100) + 0xDB4775248B80FB57.to_bytes(8, "little"))
    (tmp_path / "model.ckpt-5.data-00000-of-00002").write_bytes(b"x" * 100)
    assert "lacks model.ckpt-5.data-00001-of-00002" in check_complete(index).reason
    (tmp_path / "model.ckpt-5.data-00001-of-00002").write_bytes(b"x" * 100)
    assert check_complete(index).whole
    with pytest.raises(CheckpointError, match="TensorFlow"):
        open_archive(index)


def test_orbax_folder_is_refused_and_its_temporary_one_waited_for(tmp_path):
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "_CHECKPOINT_METADATA").write_text("{}")
    assert check_complete(tmp_path / "5").container == "Orbax"
    with pytest.raises(CheckpointError, match="JAX"):
        open_archive(tmp_path / "5")
    (tmp_path / "6.orbax-checkpoint-tmp-1").mkdir()
    assert not check_complete(tmp_path / "6.orbax-checkpoint-tmp-1").whole


def test_folder_without_a_checkpoint_says_what_is_in_it(tmp_path):
    (tmp_path / "log.txt").write_text("x")
    assert not check_complete(tmp_path).whole
    with pytest.raises(CheckpointError, match=r"1 entries \('log.txt'\)"):
        open_archive(tmp_path)


# Files that change


def test_rewritten_file_is_noticed_before_and_after_reading(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"w": torch.ones(100)}, path)
    archive = open_archive(path)
    torch.save({"w": torch.zeros(100)}, path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(CorruptCheckpoint, match="changed while it was read"):
        archive.read([archive.tree["w"]])
    with pytest.raises(CorruptCheckpoint, match="changed while it was read"):
        archive.verify_unchanged()


def test_replaced_file_is_noticed_even_with_size_and_time_restored(tmp_path):
    path, other = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save({"w": torch.ones(100)}, path)
    archive = open_archive(path)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=times)
    other.replace(path)
    with pytest.raises(CorruptCheckpoint, match="changed"):
        archive.read([archive.tree["w"]])


def test_truncated_file_is_an_error_and_not_a_crash(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"w": torch.ones(1 << 20)}, path)
    archive = open_archive(path)
    os.truncate(path, 1000)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        archive.read([archive.tree["w"]])


def test_new_hard_link_or_other_permissions_are_no_change_where_checksums_vouch(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"w": torch.ones(3)}, path)
    archive = open_archive(path)
    os.link(path, tmp_path / "last.pth")
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    assert archive.read([archive.tree["w"]])
    archive.verify_unchanged()


def test_deleted_file_is_gone_for_reading_and_fine_after_it(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"w": torch.ones(3)}, path)
    archive = open_archive(path)
    read = archive.read([archive.tree["w"]])
    path.unlink()
    archive.verify_unchanged()
    assert read
    assert "removed after it was read" in archive.notes[-1]
    with pytest.raises(IncompleteCheckpoint, match="No such file") as caught:
        archive.read([archive.tree["w"]])
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(IncompleteCheckpoint, match="No such file"):
        open_archive(path)


def test_no_handle_is_kept(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"w": torch.ones(3)}, path)
    archive = open_archive(path)
    archive.read([archive.tree["w"]])
    held = [
        os.readlink(f"/proc/self/fd/{entry}")
        for entry in os.listdir("/proc/self/fd")
        if os.path.islink(f"/proc/self/fd/{entry}")
    ]
    assert str(path) not in held
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_short_reads_of_the_system_are_continued(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    torch.save({"w": torch.arange(5000.0)}, path)
    pread, preadv = os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda fd, n, at: pread(fd, min(n, 7), at))
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:1001]], at))
    assert tensors(path)["w"].equal(torch.arange(5000.0))


@pytest.mark.parametrize("number", ["ESTALE", "EIO"])
def test_errors_of_the_system_become_ours_with_the_cause(tmp_path, monkeypatch, number):
    import errno

    path = tmp_path / "a.pth"
    torch.save({"w": torch.ones(3)}, path)
    archive = open_archive(path)

    def fail(*_):
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(IncompleteCheckpoint) as caught:
        archive.read([archive.tree["w"]])
    assert isinstance(caught.value.__cause__, OSError)
    assert str(path) in str(caught.value)


def test_torch_is_not_imported():
    code = "import sys, dse_monitor.checkpoints.archive; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_unsafe_pickle_in_a_shard_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02\x82\x01.")
        archive.writestr("a/version", b"3\n")
    with pytest.raises(UnsafeCheckpoint, match=r"pytorch_model\.bin: data\.pkl.*EXT"):
        open_archive(tmp_path)
