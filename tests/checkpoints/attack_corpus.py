"""Files that try to run code, to fill the memory or to hang their reader, written by this module itself.

Run as a script (`attack_corpus.py FOLDER`), it writes them, opens each with the project's reader, and prints
a line of JSON per attack: what came of it, seconds, and by how much the process's memory grew at its peak.
"""

import io
import json
import os
import pickle
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

P2, P4 = b"\x80\x02", b"\x80\x04"
CANARY = "canary"
COMMAND = "touch canary"
BAIT = "bait_module"  # lies on the import path and leaves the canary when it is imported
HUGE = 1 << 40


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(raw)) + raw


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def stack_name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def storage(key: str = "0", count: int = 6, kind: bytes = name("torch", "FloatStorage")) -> bytes:
    return b"(" + text("storage") + kind + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(offset: int, size: bytes, stride: bytes, store: bytes = storage()) -> bytes:
    arguments = (
        b"(" + store + number(offset) + size + stride + b"\x89" + name("collections", "OrderedDict") + b")Rt"
    )
    return name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def entry(value: bytes) -> bytes:
    """A state dict with this value in it."""
    return P2 + b"}" + text("model") + value + b"s."


def state_of(*names: str) -> bytes:
    """A state dict with a tensor under each of these names."""
    one = tensor(0, b"K\x06\x85", b"K\x01\x85")
    return P2 + b"}" + b"".join(text(each) + one + b"s" for each in names) + b"."


SYSTEM = name("os", "system")
CALL = SYSTEM + text(COMMAND) + b"\x85R"


def pickles() -> Iterator[tuple[str, bytes]]:
    """Attacks that are a pickle; each is tried as data.pkl of a zip, as a legacy file and as .metadata."""
    yield "reduce", entry(CALL)
    yield "reduce of posix", entry(name("posix", "system") + text(COMMAND) + b"\x85R")
    yield "reduce by stack name", P4 + stack_name("os", "system") + text(COMMAND) + b"\x85R."
    yield "reduce by dotted stack name", P4 + stack_name("os", "path.os.system") + text(COMMAND) + b"\x85R."
    yield "reduce of an imported module", P4 + stack_name(BAIT, "run") + b")R."
    yield "name only", P2 + name(BAIT, "run") + b"."
    yield "inst", b"(S'" + COMMAND.encode() + b"'\nios\nsystem\n."
    yield "obj", b"(" + SYSTEM + b"S'" + COMMAND.encode() + b"'\no."
    yield "newobj", P2 + name("subprocess", "Popen") + b"(" + text(COMMAND) + b"]" + b"t\x81."
    yield (
        "newobj_ex",
        P4 + stack_name("subprocess", "Popen") + text(COMMAND) + b"\x85}" + text("shell") + b"\x88s\x92.",
    )
    yield (
        "build with setstate",
        P2 + name(BAIT, "Loader") + b")\x81}" + text("command") + text(COMMAND) + b"sb.",
    )
    yield "build on a function", P2 + SYSTEM + b"}" + text("__defaults__") + text(COMMAND) + b"\x85sb."
    yield (
        "build on a rule of ours",
        P2 + name("torch._utils", "_rebuild_tensor_v2") + b"}" + text("a") + b"Nsb.",
    )
    yield "eval", P2 + name("builtins", "eval") + text(f"__import__('os').system('{COMMAND}')") + b"\x85R."
    yield (
        "exec by old name",
        P2 + name("__builtin__", "exec") + text(f"import os; os.system('{COMMAND}')") + b"\x85R.",
    )
    yield (
        "getattr chain",
        P2 + name("builtins", "getattr") + name("os", "path") + text("os") + b"\x86R" + b")R.",
    )
    yield (
        "getattr then call",
        P2 + name("builtins", "getattr") + name("builtins", "__import__") + text("os") + b"\x85R"
        + text("system") + b"\x86R" + text(COMMAND) + b"\x85R.",
    )  # fmt: skip
    yield "partial", P2 + name("functools", "partial") + SYSTEM + b"\x85R" + text(COMMAND) + b"\x85R."
    yield (
        "methodcaller",
        P2
        + name("operator", "methodcaller")
        + text("system")
        + text(COMMAND)
        + b"\x86R"
        + name("os", "")
        + b"\x85R.",
    )
    yield "runpy", P2 + name("runpy", "run_module") + text(BAIT) + b"\x85R."
    yield (
        "nested load",
        P2 + name("pickle", "loads") + b"U" + bytes([len(CALL) + 3]) + P2 + CALL + b"." + b"\x85R.",
    )
    yield "torch load from bytes", P2 + name("torch.storage", "_load_from_bytes") + text("x") + b"\x85R."
    yield "numpy load", P2 + name("numpy", "load") + text("x.npy") + b"N\x88\x87R."
    yield "codec with side effects", P2 + name("_codecs", "encode") + text("a") + text(BAIT) + b"\x86R."
    yield "factory of a defaultdict", P2 + name("collections", "defaultdict") + SYSTEM + b"\x85R."
    yield (
        "function of a tensor subclass",
        P2
        + name("torch._tensor", "_rebuild_from_type_v2")
        + b"("
        + SYSTEM
        + SYSTEM
        + text(COMMAND)
        + b"\x85NtR.",
    )
    yield (
        "state of a parameter",
        P2 + name("torch._utils", "_rebuild_parameter_with_state") + b"(" + CALL + b"\x89NNtR.",
    )
    yield "reconstructor", b"ccopy_reg\n_reconstructor\n(cos\nsystem\nc__builtin__\nobject\nNtR."
    yield (
        "storage class that is a function",
        entry(tensor(0, b"K\x06\x85", b"K\x01\x85", storage(kind=SYSTEM))),
    )
    yield "storage that was called", entry(tensor(0, b"K\x06\x85", b"K\x01\x85", CALL))
    yield "persistent id of text", b"P" + COMMAND.encode() + b"\n."
    yield "persistent id of a call", P2 + CALL + b"Q."
    yield "extension 1", P2 + b"\x82\x01."
    yield "extension 4", P2 + b"\x84" + struct.pack("<i", 0x7FFFFFFF) + b"."
    yield "buffer out of band", b"\x80\x05\x97."
    for opcode, label in (
        (b"\x8d", "unicode"),
        (b"\x8e", "bytes"),
        (b"\x96", "bytearray"),
        (b"\x95", "frame"),
    ):
        yield f"{label} of 2^40 bytes", P4 + opcode + struct.pack("<Q", HUGE) + b"x."
    yield "unicode of 2^32 bytes", P2 + b"X\xff\xff\xff\xff."
    yield "long of 2^31 bytes", P2 + b"\x8b\xff\xff\xff\x7f."
    yield "long of negative length", P2 + b"\x8b\xff\xff\xff\xff."
    yield "long of many digits", b"L" + b"9" * 1_000_000 + b"L\n."
    yield "line without end", b"V" + b"a" * 100_000
    yield "bytearray(10^11)", P2 + name("builtins", "bytearray") + number(10**11) + b"\x85R."
    yield "bytes(10^11)", P2 + name("builtins", "bytes") + number(10**11) + b"\x85R."
    yield (
        "list of a range",
        P2 + name("builtins", "list") + name("builtins", "range") + number(10**11) + b"\x85R\x85R.",
    )
    yield "memo index 2^32", P2 + b"Nr\xff\xff\xff\xff."
    yield "memo index in text", b"Np" + b"9" * 4000 + b"\n."
    yield "memo index below zero", b"Np-5\n."
    yield "memo never filled", P2 + b"h\x07."
    yield "a million nested tuples", P2 + b")" + b"\x85" * 1_000_000 + b"."
    yield "a million nested tuples as key", P2 + b"})" + b"\x85" * 1_000_000 + b"Ns."
    yield "nested tuples in a set", P4 + b"\x8f(" + b")" + b"\x85" * 100_000 + b"\x90."
    yield (
        "nested tuples for an OrderedDict",
        P2 + name("collections", "OrderedDict") + b")" + b"\x85" * 100_000 + b"N\x86\x85\x85R.",
    )
    yield "a million nested lists", P2 + b"]" * 1_000_000 + b"a" * 999_999 + b"."
    yield (
        "nested objects",
        P2 + name("a", "B") * 1 + b")\x81" + (name("a", "B") + b")\x81") * 50_000 + b"b" * 50_000 + b".",
    )
    yield "list in itself", P2 + b"]q\x00h\x00a."
    yield "dict in itself", P2 + b"}q\x00" + text("me") + b"h\x00s."
    yield "object in itself", P2 + name("a", "B") + b")\x81q\x00}" + text("me") + b"h\x00sb."
    yield "tuple in itself", P2 + b"]q\x00h\x00\x85a."
    doubling = b"".join(
        b"]q" + bytes([k]) + b"(" + b"h" + bytes([k - 1]) + b"h" + bytes([k - 1]) + b"e"
        for k in range(1, 200)
    )
    yield "doubled lists", P2 + b"]q\x00" + doubling + b"."
    yield (
        "doubled tuples",
        P2
        + b")q\x00"
        + b"".join(b"h" + bytes([k]) + b"h" + bytes([k]) + b"\x86q" + bytes([k + 1]) for k in range(150))
        + b".",
    )
    yield "doubled argument lists", P2 + b"]q\x00" + b"".join(
        name("builtins", "list") + b"h" + bytes([k]) + b"\x85Rq" + bytes([k + 1]) + b"h" + bytes([k]) + b"a"
        for k in range(100)
    ) + b"."  # fmt: skip
    yield "many opcodes", P2 + b"N0" * 1_750_000 + b"N."
    yield "many names", P2 + b"ca\nb\n0" * 1_750_000 + b"N."
    yield "many items one by one", P2 + b"}" + b"K\x01Ns" * 1_250_000 + b"."
    yield "many marks", P2 + b"(" * 3_000_000 + b"."
    yield "deep stack", P2 + b"N" * 3_000_000 + b"."
    yield "many empty sets", P4 + b"]" + (b"(" + b"\x8f" * 100_000 + b"e") * 30 + b"."
    yield "many empty dicts", P2 + b"]" + (b"(" + b"}" * 100_000 + b"e") * 60 + b"."
    yield "many objects", P2 + b"]" + name("a", "B") + b"q\x000(" + b"h\x00)\x81" * 900_000 + b"e."
    yield "many remembered floats", P4 + (b"G" + bytes(8) + b"\x940") * 1_500_000 + b"N."
    yield "text of four-byte characters", P2 + text("a" * (60 << 20) + "\U0001f600") + b"."
    yield (
        "integer keys with equal hashes",
        P2 + b"}(" + b"".join(number(k * ((1 << 61) - 1)) + b"N" for k in range(1, 60_000)) + b"u.",
    )
    yield (
        "many tuple keys",
        P2 + b"}(" + b"".join(b"J" + struct.pack("<i", k) + b"\x85N" for k in range(60_000)) + b"u.",
    )
    yield "key that is a list", P2 + b"}]Ns."
    yield "key that is a tensor", entry(b"}" + tensor(0, b"K\x06\x85", b"K\x01\x85") + b"Ns")
    yield "item stored in a tensor", entry(tensor(0, b"K\x06\x85", b"K\x01\x85") + b"NNs")
    yield "item stored in a number", P2 + b"K\x01K\x02K\x03s."
    yield "appended to text", P2 + text("a") + b"Na."
    yield "state of an int", P2 + b"K\x01}b."
    yield "stack underflow", P2 + b"R."
    yield "mark missing", P2 + b"NNt."
    yield "key without value", P2 + b"}(NNNu."
    yield "unknown opcode", P2 + b"\xff."
    yield "protocol 200", b"\x80\xc8."
    yield "no end", P2 + b"N"
    yield "negative offset", entry(tensor(-1, b"K\x06\x85", b"K\x01\x85"))
    yield "offset beyond the storage", entry(tensor(1, b"K\x06\x85", b"K\x01\x85"))
    yield "negative stride", entry(tensor(0, b"K\x06\x85", number(-1) + b"\x85"))
    yield "size beyond the storage", entry(tensor(0, number(HUGE) + b"\x85", b"K\x01\x85"))
    yield (
        "size whose product overflows",
        entry(tensor(0, number(1 << 40) + number(1 << 40) + b"\x86", b"K\x01K\x01\x86")),
    )
    yield "2^40 elements from one", entry(tensor(0, number(HUGE) + b"\x85", b"K\x00\x85"))
    yield "more sizes than strides", entry(tensor(0, b"K\x02K\x03\x86", b"K\x01\x85"))
    yield (
        "storage key with a path",
        entry(tensor(0, b"K\x06\x85", b"K\x01\x85", storage("../../../etc/passwd"))),
    )
    yield "storage of another size", entry(tensor(0, b"K\x06\x85", b"K\x01\x85", storage(count=1 << 50)))
    yield (
        "cyclic parametrizations",
        state_of(
            "a.parametrizations.weight.original",
            "a.parametrizations.parametrizations.weight.original.original",
            "parametrizations.parametrizations.parametrizations.original",
            "a.weight_orig_orig",
            "a.weight_orig",
            "a.weight_orig_mask",
            "a.weight_mask",
            "a.base_layer.base_layer.base_layer.weight",
            "a.base_layer.lora_A.default.weight",
            "a.lora_A.base_layer.default.weight",
            "a.modules_to_save.x.modules_to_save.y.original_module.weight",
        ),
    )
    yield "name of a million dots", state_of("." * 1_000_000 + "weight_orig", "." * 1_000_000 + "weight_mask")
    yield (
        "name of many numbers",
        state_of("blocks." + "9" * 5000 + ".norm1.weight", "patch_embed.proj.weight"),
    )
    yield (
        "blocks without end",
        state_of("patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.999999999999.x"),
    )
    yield (
        "many adapters",
        state_of(
            *(f"m{k}.base_layer.weight" for k in range(3000)),
            *(f"m{k}.lora_A.{j}.weight" for k in range(300) for j in range(9)),
        ),
    )
    yield "name with terminal codes", P2 + name("\x1b[2J", "\x07") + b")R."


def torch_zip(
    pickled: bytes, *, compress: int = zipfile.ZIP_STORED, extra: dict[str, bytes] | None = None
) -> bytes:
    """A zip as torch.save writes it, with this pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compress) as archive:
        for member, content in {
            "data.pkl": pickled,
            "byteorder": b"little",
            "data/0": bytes(24),
            "version": b"3\n",
        }.items():
            archive.writestr(f"archive/{member}", content)
        for member, content in (extra or {}).items():
            archive.writestr(member, content)
    return buffer.getvalue()


def legacy(pickled: bytes) -> bytes:
    """A file as torch.save wrote it before 1.6, with this object."""
    parts = [
        0x1950A86A20F9469CFC6C,
        1001,
        {"little_endian": True, "protocol_version": 1001, "type_sizes": {}},
    ]
    keys = pickle.dumps(["0"], 2)
    return (
        b"".join(pickle.dumps(part, 2) for part in parts) + pickled + keys + struct.pack("<q", 6) + bytes(24)
    )


def safetensors(header: bytes, data: bytes = bytes(24)) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def tensor_header(**fields: object) -> bytes:
    return json.dumps({"w": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24], **fields}}).encode()


def state_dict() -> bytes:
    return entry(tensor(0, b"K\x06\x85", b"K\x01\x85"))


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old), old
    return data.replace(old, new)


def deflate_bomb(promise: int) -> bytes:
    """A data.pkl of 400 MB of MARK opcodes in half a megabyte, with the length its directory promises."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = (
        P2
        and packer.compress(P2)
        + b"".join(packer.compress(b"(" * (1 << 20)) for _ in range(400))
        + packer.flush()
    )
    header = (
        struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, 0, len(packed), promise, 10, 0)
        + b"a/data.pkl"
        + packed
    )
    central = struct.pack(
        "<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 0, 0, len(packed), promise, 10, 0, 0, 0, 0, 0, 0
    )
    central += b"a/data.pkl"
    return header + central + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(central), len(header), 0)


def gzip_bomb() -> bytes:
    """A gigabyte of zeros in a megabyte."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(1024)) + packer.flush()


def storage_bomb() -> bytes:
    """A deflated storage of 256 MB of zeros."""
    count = 1 << 26
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(
            "archive/data.pkl", entry(tensor(0, number(count) + b"\x85", b"K\x01\x85", storage(count=count)))
        )
        with archive.open("archive/data/0", "w", force_zip64=True) as member:
            for _ in range(256):
                member.write(bytes(1 << 20))
    return buffer.getvalue()


def overlapping() -> bytes:
    """Two members whose bytes are the same ones."""
    data = bytearray(torch_zip(state_dict(), extra={"archive/data/1": bytes(24)}))
    first = data.index(b"PK\1\2")
    for _ in range(4):
        first = data.index(b"PK\1\2", first + 4)
    (header,) = struct.unpack_from("<I", data, first + 42)
    struct.pack_into("<I", data, first + 42, header - 20)
    return bytes(data)


def duplicate_members() -> bytes:
    """Two data.pkl; Python's zipfile and torch would take different ones."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", state_dict())
        archive.writestr("archive/data.pkk", entry(CALL))
        archive.writestr("archive/data/0", bytes(24))
    return patched(buffer.getvalue(), b"data.pkk", b"data.pkl")


def other_local_name() -> bytes:
    """A member whose local header carries another name than the directory."""
    return torch_zip(state_dict()).replace(b"archive/data/0", b"archive/data/9", 1)


def many_members() -> bytes:
    """An end record that promises more members than any checkpoint has."""
    data = bytearray(torch_zip(state_dict()))
    struct.pack_into("<2H", data, len(data) - 14, 0xFFFE, 0xFFFE)
    return bytes(data)


def json_bomb(piece: bytes, megabytes: int) -> bytes:
    return b'{"a":[' + piece * ((megabytes << 20) // len(piece)) + b"0]}"


def files() -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Attacks that are a whole file."""
    yield "deflate bomb with an honest length", lambda: deflate_bomb((400 << 20) + 2)
    yield "deflate bomb with a small promise", lambda: deflate_bomb(100)
    yield "deflated storage bomb", storage_bomb
    yield "overlapping members", overlapping
    yield "duplicate members", duplicate_members
    yield "other local name", other_local_name
    yield "more members than there are", many_members
    yield (
        "member larger than the file",
        lambda: patched(
            torch_zip(state_dict()), struct.pack("<2I", 24, 24), struct.pack("<2I", 1 << 30, 1 << 30)
        ),
    )
    yield (
        "TorchScript with code",
        lambda: torch_zip(state_dict(), extra={"archive/constants.pkl": b"", "archive/code/a.py": b"x"}),
    )
    yield (
        "member names with a path",
        lambda: torch_zip(state_dict(), extra={"../../escaped": b"x", "/etc/passwd": b"x"}),
    )
    yield "safetensors header of 2^63 bytes", lambda: struct.pack("<Q", 1 << 63) + b'{"w": 1}' + bytes(64)
    yield "safetensors header of 90 MB of blanks", lambda: safetensors(tensor_header() + b" " * (90 << 20))
    yield "safetensors header of empty lists", lambda: safetensors(json_bomb(b"[],", 90))
    yield "safetensors header of numbers", lambda: safetensors(json_bomb(b"1.5,", 90))
    yield "safetensors header nested deep", lambda: safetensors(b'{"a":' * 300_000 + b"1" + b"}" * 300_000)
    yield (
        "safetensors header with a huge number",
        lambda: safetensors(tensor_header(shape=[0]).replace(b"[0]", b"[" + b"9" * 100_000 + b"]")),
    )
    yield "safetensors negative offset", lambda: safetensors(tensor_header(data_offsets=[-24, 0]))
    yield "safetensors offsets backwards", lambda: safetensors(tensor_header(data_offsets=[24, 0]))
    yield "safetensors shape too large", lambda: safetensors(tensor_header(shape=[1 << 40, 1 << 20]))
    yield "safetensors key twice", lambda: safetensors(tensor_header()[:-1] + b"," + tensor_header()[1:])
    yield "safetensors header is a list", lambda: safetensors(b"{" + b"}" * 9)
    yield (
        "legacy storage of 2^55 elements",
        lambda: patched(legacy(state_dict()), struct.pack("<q", 6) + bytes(24), struct.pack("<q", 1 << 55)),
    )
    yield "tar of nothing", lambda: bytes(10_240)
    yield "gzip bomb", gzip_bomb
    yield "xz of nothing", lambda: b"\xfd7zXZ\0" + bytes(1000)
    yield "HTML of one element without end", lambda: b"<!--" + b"<!-- " * 1_000_000
    yield (
        "Git LFS pointer to elsewhere",
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:../../x\n",
    )
    yield "text without end of line", lambda: b"a" * (8 << 20)


def write_index(folder: Path, target: str) -> Path:
    """A sharded checkpoint whose index names this file."""
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"w": target}})
    )
    return folder


def write_metadata(folder: Path, target: str, size: int, length: int) -> Path:
    """A distributed checkpoint whose metadata names this file and this size."""
    folder.mkdir()
    (folder / "__0_0.distcp").write_bytes(torch_zip(P2 + tensor(0, b"K\x06\x85", b"K\x01\x85") + b"."))
    module = "torch.distributed.checkpoint.metadata"

    def made(kind: str, **fields: bytes) -> bytes:
        state = b"}" + b"".join(text(key) + value + b"s" for key, value in fields.items())
        home = "torch.distributed.checkpoint.filesystem" if kind == "_StorageInfo" else module
        return name(home, kind) + b")\x81" + state + b"b"

    shape, zero = number(size) + b"\x85", number(0) + b"\x85"
    properties = name(module, "TensorProperties") + b")\x81(" + name("torch", "float32") + b"N\x89N\x89tb"
    chunk = made("ChunkStorageMetadata", offsets=zero, sizes=shape)
    described = made("TensorStorageMetadata", properties=properties, size=shape, chunks=b"]" + chunk + b"a")
    place = made("_StorageInfo", relative_path=text(target), offset=number(0), length=number(length))
    stored = b"}" + made("MetadataIndex", fqn=text("w"), offset=zero) + place + b"s"
    content = made("Metadata", state_dict_metadata=b"}" + text("w") + described + b"s", storage_data=stored)
    (folder / ".metadata").write_bytes(P2 + content + b".")
    return folder


def adapters(root: Path) -> Iterator[tuple[str, Path]]:
    """Files of peft whose configuration is absurd: a full state dict with LoRA, and adapters alone."""
    names = ("base_model.model.a.base_layer.weight", "a.lora_A.default.weight", "a.lora_B.default.weight")
    full = torch_zip(state_of(names[0], *(f"base_model.model.{each}" for each in names[1:])))
    usual = {"peft_type": "LORA", "r": 6, "lora_alpha": 8}
    absurd: dict[str, object] = {
        "huge rank": usual,  # written below: Python itself writes no such number
        "rank in a list": usual | {"r": [6], "lora_alpha": {"a": 1}},
        "pattern that backtracks": usual
        | {"rank_pattern": {"(a*)*b" * 20: 6}, "alpha_pattern": {"(x+x+)+y": 8}},
        "a million patterns": usual | {"alpha_pattern": {f"m{k}": 8 for k in range(200_000)}},
        "list for an object": [usual],
        "base that is a device": usual | {"base_model_name_or_path": "/dev/zero"},
        "base that is a pipe": usual | {"base_model_name_or_path": str(root / "pipe.pth")},
        "base that is itself": usual | {"base_model_name_or_path": "."},
        "base of many characters": usual | {"base_model_name_or_path": "a/" * 100_000},
        "base with a nul": usual | {"base_model_name_or_path": "a\0b"},
        "initialisation in a list": usual | {"base_model_name_or_path": ".", "init_lora_weights": [[[]]]},
    }
    for number, (label, config) in enumerate(absurd.items()):
        folder = root / f"adapter{number}"
        folder.mkdir()
        raw = (
            json.dumps(config) if label != "huge rank" else '{"peft_type": "LORA", "r": 1' + "0" * 4200 + "}"
        )
        (folder / "adapter_config.json").write_text(raw)
        (folder / "full.pth").write_bytes(full)
        (folder / "adapter_model.safetensors").write_bytes(safetensors(tensor_header()))
        yield f"LoRA with {label}", folder / "full.pth"
        yield f"adapter with {label}", folder
    two = [root / f"circle{k}" for k in range(2)]
    for here, there in (two, two[::-1]):
        here.mkdir()
        (here / "adapter_config.json").write_text(json.dumps(usual | {"base_model_name_or_path": str(there)}))
        (here / "adapter_model.safetensors").write_bytes(safetensors(tensor_header()))
    yield "adapters that name each other", two[0]


def folders(root: Path) -> Iterator[tuple[str, Path]]:
    """Attacks that are a folder or another kind of path."""
    (root / "secret.safetensors").write_bytes(safetensors(tensor_header()))
    outside = (
        "../secret.safetensors",
        str(root / "secret.safetensors"),
        "a/../../secret.safetensors",
        "a\0b",
        "",
    )
    for k, target in enumerate(outside):
        yield f"index names {target!r:.24}", write_index(root / f"index{k}", target)
    for k, target in enumerate(outside[:3]):
        yield f"metadata names {target!r:.24}", write_metadata(root / f"dcp{k}", target, 6, 100)
    yield "metadata with a size of 2^45", write_metadata(root / "dcp-size", "__0_0.distcp", 1 << 45, 200)
    yield (
        "metadata with a range beyond the file",
        write_metadata(root / "dcp-range", "__0_0.distcp", 6, 1 << 45),
    )
    os.mkfifo(root / "pipe.pth")
    yield "named pipe", root / "pipe.pth"
    (root / "endless.pth").symlink_to("/dev/zero")
    yield "link to an endless device", root / "endless.pth"
    (root / "loop.pth").symlink_to(root / "loop.pth")
    yield "link to itself", root / "loop.pth"
    huge = root / "huge"
    huge.mkdir()
    with (huge / "model.safetensors.index.json").open("wb") as file:
        file.truncate(1 << 40)
    yield "index of a terabyte", huge


def write_corpus(root: Path) -> Iterator[tuple[str, Path]]:
    """Every attack, written just before it is yielded, so that few lie on disk at a time."""
    for label, pickled in pickles():
        large = len(pickled) > 1 << 20
        path = root / "attack.pth"
        path.write_bytes(torch_zip(pickled))
        yield f"zip: {label}", path
        if not large:
            path.write_bytes(legacy(pickled))
            yield f"legacy: {label}", path
            folder = root / "distributed"
            folder.mkdir(exist_ok=True)
            (folder / ".metadata").write_bytes(pickled)
            yield f"metadata: {label}", folder
    for label, content in files():
        path = root / "attack.bin"
        path.write_bytes(content())
        yield f"file: {label}", path
    for label, path in folders(root):
        yield f"path: {label}", path
    for label, path in adapters(root):
        yield f"path: {label}", path


def looked_at(archive) -> str:
    """What recognition makes of the names and shapes of an opened attack, weights in other forms included."""
    from dse_monitor.checkpoints.families.network import Hints, NotThisNetwork
    from dse_monitor.checkpoints.families.statedicts import state_dicts
    from dse_monitor.checkpoints.layouts.layout import marks
    from dse_monitor.checkpoints.recognition import architecture
    from dse_monitor.checkpoints.recognition.causes import no_encoder
    from dse_monitor.errors import DSEError

    states = state_dicts(archive.tree, archive.sidecars.get("adapter_config.json"))
    marks(archive.tree, states)
    no_encoder(archive.path, archive.tree, states)
    for found in architecture.encoders(states):
        try:
            pieces = found.pieces()
            shapes = {name: piece.shape for name, piece in pieces.items()}
            architecture.recognise(found.dialect.family, shapes, Hints())
        except (NotThisNetwork, DSEError):
            pass
    return "inert"


def peak_kilobytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise OSError("no VmHWM in /proc/self/status")


def run(root: Path) -> None:
    """Open every attack and read what it offers; one line of JSON each."""
    (root / f"{BAIT}.py").write_text(f"import os\nos.system({COMMAND!r})\n")
    sys.path.insert(0, str(root))
    os.chdir(root)
    import concurrent.futures.thread  # noqa: F401 - ours, loaded when it is first needed

    import dse_monitor.checkpoints.layouts.layout
    import dse_monitor.checkpoints.recognition.architecture
    import dse_monitor.checkpoints.recognition.causes  # noqa: F401 - ours, and so is what they load
    from dse_monitor.checkpoints import families
    from dse_monitor.checkpoints.archive import TensorRef, check_complete, open_archive, walk
    from dse_monitor.errors import CheckpointError

    families.REGISTRY.load_all()
    for label, path in write_corpus(root):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is in use
        before, modules, start = peak_kilobytes(), set(sys.modules), time.process_time()
        try:
            check_complete(path)
            with open_archive(path) as archive:
                refs = [value for _, value in walk(archive.tree) if isinstance(value, TensorRef)]
                archive.read(refs)
                outcome = looked_at(archive)
        except CheckpointError as error:
            outcome = f"{type(error).__name__}: {error}"
        seconds = time.process_time() - start
        grown = (peak_kilobytes() - before) / 1024
        imported = sorted(
            module for module in set(sys.modules) - modules if not module.startswith("encodings.")
        )
        print(
            json.dumps({
                "attack": label, "outcome": outcome, "seconds": seconds, "megabytes": grown,
                "imported": imported, "canary": os.path.exists(CANARY),
            }),
            flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    run(Path(sys.argv[1]))
