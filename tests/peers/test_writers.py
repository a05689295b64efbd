"""Each script of examples/layouts writes ten checkpoints or more, and a watcher follows them as one run.

With `--once` for every writer, and while the training goes on for some.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from peers import installed

from dse_monitor import scenes
from dse_monitor.runs import ledger
from dse_monitor.runs.series import Series

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "examples" / "layouts"
TENS = list(range(1, 11))
TWOS = list(range(2, 21, 2))
MINUTES = 4  # for a training of seconds beside a watcher, on a busy machine


@dataclass(frozen=True)
class Writer:
    """What a script must come to."""

    script: str
    package: str  # which must be there to run it
    run: str  # pattern of the run's folder
    files: list[str]  # of the run's points, in training order
    axis: str
    epochs: list[float | None] = field(default_factory=lambda: [None] * 10)
    steps: list[int | None] = field(default_factory=lambda: [None] * 10)
    heads: bool = True  # whether --num-heads is needed, as nothing in or beside the files says it
    processes: int = 1


WRITERS = {
    "Lightning, epochs": Writer(
        "lightning_epochs",
        "lightning",
        "lightning_logs/version_0",
        [f"checkpoints/epoch={n - 1}-step={2 * n}.ckpt" for n in TENS],
        "epoch",
        TENS,
        TWOS,
    ),
    "Lightning, steps": Writer(
        "lightning_steps",
        "lightning",
        "lightning_logs/version_0",
        [f"checkpoints/epoch=0-step={n}.ckpt" for n in TWOS],
        "step",
        [0.0] * 9 + [1.0],
        TWOS,
    ),
    "timm": Writer(
        "timm_saver",
        "timm",
        ".",
        [f"checkpoint-{n}.pth.tar" for n in range(8)]
        + ["recovery-8-1.pth.tar", "checkpoint-8.pth.tar", "recovery-9-1.pth.tar", "checkpoint-9.pth.tar"],
        "step",
        [1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 9, 10],
        [4, 8, 12, 16, 20, 24, 28, 32, 34, 36, 38, 40],
        heads=False,
    ),
    "accelerate, automatic": Writer(
        "accelerate_automatic",
        "accelerate",
        ".",
        [f"checkpoints/checkpoint_{n}/model.safetensors" for n in range(10)],
        "order",
    ),
    "accelerate, epochs": Writer(
        "accelerate_epochs",
        "accelerate",
        ".",
        [f"epoch_{n}/model.safetensors" for n in range(10)],
        "epoch",
        TENS,
    ),
    "transformers, Trainer": Writer(
        "transformers_trainer",
        "transformers",
        ".",
        [f"checkpoint-{n}/model.safetensors" for n in TWOS],
        "epoch",
        [n / 8 for n in TWOS],
        TWOS,
        heads=False,
    ),
    "transformers, save_pretrained": Writer(
        "save_pretrained",
        "transformers",
        ".",
        [f"epoch-{n}/model.safetensors" for n in range(10)],
        "epoch",
        TENS,
        heads=False,
    ),
    "torch.distributed.checkpoint": Writer(
        "dcp_saves", "torch", ".", [f"step_{n}" for n in TWOS], "step", steps=TWOS
    ),
    "torch.distributed.checkpoint, FSDP2": Writer(
        "dcp_saves", "torch", ".", [f"step_{n}" for n in TWOS], "step", steps=TWOS, processes=2
    ),
    "hydra": Writer(
        "hydra_job", "hydra", "outputs/*/*", [f"checkpoint_{n}.pth" for n in TENS], "epoch", TENS
    ),
    "wandb": Writer(
        "wandb_offline",
        "wandb",
        "wandb/offline-run-*",
        [f"files/checkpoints/step={n}.ckpt" for n in TWOS],
        "step",
        steps=TWOS,
    ),
    "mlflow": Writer(
        "mlflow_store",
        "mlflow",
        "mlruns/0/" + 32 * "[0-9a-f]",
        [f"artifacts/checkpoints/epoch_{n}.pth" for n in TENS],
        "epoch",
        TENS,
    ),
    "torchtitan, repeated": Writer(
        "torchtitan_calls", "torch", ".", [f"checkpoint/step-{n}" for n in TWOS], "step", steps=TWOS
    ),
    "torchtune, repeated": Writer(
        "torchtune_calls",
        "transformers",
        ".",
        [f"epoch_{n}/model.safetensors.index.json" for n in range(10)],
        "epoch",
        TENS,
        heads=False,
    ),
    "composer, repeated": Writer(
        "composer_calls",
        "torch",
        ".",
        [f"checkpoints/ep{n}-ba{4 * n}-rank0.pt" for n in TENS],
        "epoch",
        TENS,
        [4 * n for n in TENS],
    ),
    "DINOv2, repeated": Writer(
        "dinov2_calls",
        "torch",
        ".",
        [f"eval/training_{n - 1}/teacher_checkpoint.pth" for n in TWOS],
        "step",
        steps=TWOS,
    ),
    "DINOv3, repeated": Writer(
        "dinov3_calls", "timm", ".", [f"ckpt/{n - 1}" for n in TWOS], "step", steps=TWOS, heads=False
    ),
    "Hugging Face with FSDP, repeated": Writer(
        "hugging_face_fsdp_calls",
        "torch",
        ".",
        [f"checkpoint-{n}/pytorch_model_fsdp_0" for n in TWOS],
        "step",
        steps=TWOS,
    ),
}
LIVE = ["Lightning, steps", "accelerate, epochs", "torch.distributed.checkpoint, FSDP2"]


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "WANDB_SILENT": "true", **more}


def write(writer, folder):
    """Run a writer's script, with torchrun where it takes several processes."""
    for name in {"timm", "safetensors", writer.package}:
        installed(name)
    command = [sys.executable]
    if writer.processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(writer.processes)]
    command += [str(SCRIPTS / f"{writer.script}.py"), str(folder)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def watch_command(writer, folder):
    """What a user types; of the images there are few."""
    scenes.write_folder(folder.parent / "images", count=16, size=32, seed=0)
    command = [sys.executable, "-m", "dse_monitor", "watch", str(folder), "--plain", "--device", "cpu"]
    command += ["--images", str(folder.parent / "images"), "--num-images", "16"]
    return command + (["--num-heads", "3"] if writer.heads else [])


def the_run(writer, folder):
    """The one run that was found."""
    found = [path.parent for path in folder.rglob("dse") if path.is_dir()]
    assert len(found) == 1, found
    assert found == ([folder] if writer.run == "." else list(folder.glob(writer.run)))
    return found[0]


def assert_followed(writer, folder):
    """All points, in order, with their counts; the best is chosen and alerts are judged among all of them."""
    run = the_run(writer, folder)
    series = Series.from_evaluations(ledger.read(run / "dse").evaluations)
    assert [e.source.path for e in series.evaluations] == writer.files
    assert series.axis == writer.axis
    assert [e.source.epoch for e in series.evaluations] == writer.epochs
    assert [e.source.step for e in series.evaluations] == writer.steps
    assert not series.untrained.any()
    best = json.loads((run / "dse" / "best.json").read_text())
    assert (series.counted, best["measured"]) == (len(writer.files), len(writer.files))
    assert series.dse[series.best] == series.dse.max()
    assert best["best"]["path"] == writer.files[series.best]


@pytest.mark.parametrize("name", WRITERS)
def test_a_finished_run_of_each_writer_is_one_curve(name, tmp_path):
    writer, folder = WRITERS[name], tmp_path / "run"
    write(writer, folder)
    command = [*watch_command(writer, folder), "--once"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_followed(writer, folder)


@pytest.mark.parametrize("name", LIVE)
def test_a_run_is_one_curve_while_it_is_written(name, tmp_path):
    writer, folder = WRITERS[name], tmp_path / "run"
    folder.mkdir()
    said = (tmp_path / "said").open("w+")
    watcher = subprocess.Popen(
        watch_command(writer, folder), env=environment(), stdout=said, stderr=subprocess.STDOUT
    )
    try:
        write(writer, folder)
        end = time.monotonic() + 60 * MINUTES
        while len(measured(folder)) < len(writer.files):
            assert watcher.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < end, (tmp_path / "said").read_text()
            time.sleep(0.5)
    finally:
        watcher.send_signal(signal.SIGINT)
        watcher.wait(60)
        said.close()
    assert_followed(writer, folder)


def measured(folder):
    """What the watcher has recorded so far, in whatever run it found."""
    return [e for dse in folder.rglob("dse") for e in ledger.read(dse).evaluations]
