"""Files that try to run code, fill the memory or hang: nothing runs, and the reader survives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CORPUS = Path(__file__).with_name("attack_corpus.py")
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(900)  # the corpus takes half a minute, far more on a loaded machine
MEGABYTES = 300  # growth of the peak of resident memory, per attack
SECONDS = 5.0  # of processor time, per attack


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, dict]:
    """Every attack opened in one child process, with what came of it."""
    folder = tmp_path_factory.mktemp("attacks")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(CORPUS), str(folder)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (folder / "canary").exists()
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({line["attack"] for line in lines}) == len(lines)
    return {line["attack"]: line for line in lines}


def test_the_corpus_is_large_and_reaches_every_container(outcomes):
    kinds = [name.split(":")[0] for name in outcomes]
    assert {kind: kinds.count(kind) >= 10 for kind in set(kinds)} == dict.fromkeys(
        ("zip", "legacy", "metadata", "file", "path"), True
    )
    assert len(outcomes) > 250


def test_no_attack_runs_anything(outcomes):
    assert [name for name, line in outcomes.items() if line["canary"]] == []


def test_no_attack_imports_anything(outcomes):
    assert [(name, line["imported"]) for name, line in outcomes.items() if line["imported"]] == []


def test_no_attack_fills_the_memory(outcomes):
    assert [
        (name, line["megabytes"]) for name, line in outcomes.items() if line["megabytes"] > MEGABYTES
    ] == []


def test_no_attack_keeps_the_processor_busy(outcomes):
    assert [(name, line["seconds"]) for name, line in outcomes.items() if line["seconds"] > SECONDS] == []


def test_every_attack_ends_in_a_value_or_an_error_of_the_tree(outcomes):
    public = ("inert", "IncompleteCheckpoint", "CorruptCheckpoint", "UnsafeCheckpoint", "CheckpointError")
    assert [line for line in outcomes.values() if line["outcome"].split(":")[0] not in public] == []


def test_refusals_name_the_file_and_what_was_found(outcomes):
    for name, line in outcomes.items():
        kind, _, text = line["outcome"].partition(": ")
        if kind != "inert":
            assert len(text) > 40, name
            assert "/" in text.split()[0] or text.startswith("a tensor of"), name
            assert text.isprintable(), name


REFUSED = {
    "zip: extension 1": "UnsafeCheckpoint",
    "zip: buffer out of band": "UnsafeCheckpoint",
    "zip: storage class that is a function": "UnsafeCheckpoint",
    "zip: persistent id of a call": "UnsafeCheckpoint",
    "zip: build on a function": "UnsafeCheckpoint",
    "zip: unicode of 2^40 bytes": "UnsafeCheckpoint",
    "zip: a million nested tuples": "UnsafeCheckpoint",
    "zip: a million nested tuples as key": "UnsafeCheckpoint",
    "zip: doubled lists": "UnsafeCheckpoint",
    "zip: many opcodes": "UnsafeCheckpoint",
    "zip: many names": "UnsafeCheckpoint",
    "zip: many items one by one": "UnsafeCheckpoint",
    "zip: many empty sets": "UnsafeCheckpoint",
    "zip: integer keys with equal hashes": "UnsafeCheckpoint",
    "zip: item stored in a tensor": "UnsafeCheckpoint",
    "zip: negative offset": "CorruptCheckpoint",
    "zip: size whose product overflows": "CorruptCheckpoint",
    "zip: storage of another size": "CorruptCheckpoint",
    "file: deflate bomb with an honest length": "UnsafeCheckpoint",
    "file: deflate bomb with a small promise": "CorruptCheckpoint",
    "file: deflated storage bomb": "CorruptCheckpoint",
    "file: overlapping members": "CorruptCheckpoint",
    "file: duplicate members": "CorruptCheckpoint",
    "file: other local name": "CorruptCheckpoint",
    "file: safetensors header of 2^63 bytes": "CorruptCheckpoint",
    "file: safetensors header of empty lists": "UnsafeCheckpoint",
    "file: safetensors negative offset": "CorruptCheckpoint",
    "file: safetensors key twice": "CorruptCheckpoint",
    "path: index names '../secret.safetensors'": "UnsafeCheckpoint",
    "path: metadata names '../secret.safetensors'": "UnsafeCheckpoint",
    "path: metadata with a size of 2^45": "CorruptCheckpoint",
    "path: named pipe": "CheckpointError",
    "path: link to an endless device": "CheckpointError",
    "path: index of a terabyte": "UnsafeCheckpoint",
    "file: gzip bomb": "CheckpointError",
    "file: xz of nothing": "CheckpointError",
    "file: Git LFS pointer to elsewhere": "CheckpointError",
    "path: LoRA with huge rank": "inert",
    "path: LoRA with pattern that backtracks": "inert",
    "path: adapter with base that is a device": "CheckpointError",
    "path: adapter with base that is itself": "CheckpointError",
    "path: adapter with initialisation in a list": "CheckpointError",
    "path: adapters that name each other": "CheckpointError",
    "zip: cyclic parametrizations": "inert",
    "zip: name of a million dots": "inert",
    "zip: blocks without end": "inert",
}


@pytest.mark.parametrize("attack", REFUSED)
def test_attack_is_refused_for_what_it_is(outcomes, attack):
    assert outcomes[attack]["outcome"].split(":")[0] == REFUSED[attack]


@pytest.mark.parametrize(
    "attack", ["reduce", "inst", "obj", "newobj", "newobj_ex", "reduce by stack name", "eval"]
)
def test_calls_are_only_recorded(outcomes, attack):
    assert outcomes[f"zip: {attack}"]["outcome"] == "inert"
