"""How trainings lay out their checkpoints on disk, and which of the folders are runs: one example of each.

The rule itself is in folders.py and walk.py; this table says what it comes to. A test makes each tree and
compares, and docs/run_layouts.md is made from it (layouts_document.py).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RunLayout:
    """One layout.

    Attributes:
        name: for tests and headings.
        writer: who writes so.
        tree: paths below the folder given to `watch`; a link as ``name -> target``.
        runs: each run below that folder, and how many checkpoints it has; ``.`` is the folder itself.
        why: the part of the rule that decides.
    """

    name: str
    writer: str
    tree: tuple[str, ...]
    runs: dict[str, int]
    why: str


LAYOUTS: tuple[RunLayout, ...] = (
    RunLayout(
        name="files in the folder",
        writer="DINO, MAE, timm, dse-train and most others",
        tree=("checkpoint.pth", "checkpoint0000.pth", "checkpoint0020.pth", "log.txt"),
        runs={".": 3},
        why="checkpoints lie in the folder given",
    ),
    RunLayout(
        name="a folder of checkpoints",
        writer="SwAV, open_clip, composer, Ultralytics (`weights`)",
        tree=("exp1/checkpoints/epoch_1.pt", "exp1/checkpoints/epoch_2.pt", "exp1/params.txt"),
        runs={"exp1": 2},
        why="`checkpoints`, `ckpt`, `weights` and the like hold checkpoints of the folder above",
    ),
    RunLayout(
        name="a folder for each epoch",
        writer='accelerate: `save_state(f"epoch_{epoch}")`; torchtune; `save_pretrained(f"epoch-{epoch}")`',
        tree=(
            "epoch_0/model.safetensors",
            "epoch_0/optimizer.bin",
            "epoch_0/random_states_0.pkl",
            "epoch_1/model.safetensors",
            "epoch_2/model.safetensors",
        ),
        runs={".": 3},
        why="a folder named by a count is a checkpoint of the run above",
    ),
    RunLayout(
        name="a folder for each step",
        writer='accelerate: `save_state(f"step_{step}")`; Hugging Face Trainer',
        tree=(
            "a/step_100/model.safetensors",
            "a/step_200/model.safetensors",
            "b/checkpoint-500/model.safetensors",
        ),
        runs={"a": 2, "b": 1},
        why="a folder named by a count is a checkpoint of the run above",
    ),
    RunLayout(
        name="numbered folders",
        writer="own code",
        tree=("0001/model.pt", "0002/model.pt", "0003/model.pt"),
        runs={".": 3},
        why="a folder named by a bare number is a checkpoint, if what lies in it has no count of its own",
    ),
    RunLayout(
        name="accelerate's own numbers",
        writer="accelerate with `automatic_checkpoint_naming`",
        tree=("checkpoints/checkpoint_0/model.safetensors", "checkpoints/checkpoint_1/model.safetensors"),
        runs={".": 2},
        why="a folder named by a count is a checkpoint of the run above; these numbers count what was saved",
    ),
    RunLayout(
        name="torch.distributed.checkpoint",
        writer="own calls of `dcp.save`, torchtitan, DINOv3",
        tree=(
            "step_100/.metadata",
            "step_100/__0_0.distcp",
            "any name/.metadata",
            "any name/__0_0.distcp",
            "train.log",
        ),
        runs={".": 2},
        why="a folder with `.metadata` or `*.distcp` is one checkpoint, whatever its name",
    ),
    RunLayout(
        name="Hugging Face with FSDP",
        writer="Trainer and accelerate with a sharded state dict",
        tree=(
            "checkpoint-500/pytorch_model_fsdp_0/.metadata",
            "checkpoint-500/pytorch_model_fsdp_0/__0_0.distcp",
            "checkpoint-500/optimizer_0/.metadata",
            "checkpoint-500/trainer_state.json",
            "checkpoint-1000/pytorch_model_fsdp_0/.metadata",
        ),
        runs={".": 2},
        why="a folder with `.metadata` is one checkpoint; the optimiser's is none",
    ),
    RunLayout(
        name="DINOv2",
        writer="DINOv2",
        tree=(
            "config.yaml",
            "model_0001249.rank_0.pth",
            "eval/training_1249/teacher_checkpoint.pth",
            "eval/training_2499/teacher_checkpoint.pth",
        ),
        runs={".": 3},
        why="`eval` belongs to the folder above, and numbered folders are checkpoints",
    ),
    RunLayout(
        name="Lightning",
        writer="Lightning's default logger",
        tree=(
            "lightning_logs/version_0/hparams.yaml",
            "lightning_logs/version_0/checkpoints/epoch=0-step=10.ckpt",
            "lightning_logs/version_1/hparams.yaml",
            "lightning_logs/version_1/checkpoints/epoch=0-step=10.ckpt",
            "lightning_logs/version_1/checkpoints/epoch=1-step=20.ckpt",
        ),
        runs={"lightning_logs/version_0": 1, "lightning_logs/version_1": 2},
        why="each `version_N` is a training of its own",
    ),
    RunLayout(
        name="lightning-hydra-template",
        writer="lightning-hydra-template",
        tree=(
            "train/runs/2024-01-31_09-00-00/.hydra/config.yaml",
            "train/runs/2024-01-31_09-00-00/checkpoints/epoch_000.ckpt",
            "train/runs/2024-02-01_09-00-00/.hydra/config.yaml",
            "train/runs/2024-02-01_09-00-00/checkpoints/epoch_000.ckpt",
            "train/runs/2024-02-01_09-00-00/checkpoints/last.ckpt",
        ),
        runs={"train/runs/2024-01-31_09-00-00": 1, "train/runs/2024-02-01_09-00-00": 2},
        why="a folder with `.hydra` in it is a run, as is one named by a date",
    ),
    RunLayout(
        name="hydra, single runs",
        writer="hydra's default, with any trainer",
        tree=(
            "outputs/2024-01-31/09-00-00/.hydra/config.yaml",
            "outputs/2024-01-31/09-00-00/checkpoint_10.pth",
            "outputs/2024-01-31/10-30-00/.hydra/config.yaml",
            "outputs/2024-01-31/10-30-00/checkpoint_10.pth",
        ),
        runs={"outputs/2024-01-31/09-00-00": 1, "outputs/2024-01-31/10-30-00": 1},
        why="a folder with `.hydra` in it is a run, as is one named by a time",
    ),
    RunLayout(
        name="hydra, multirun",
        writer="hydra --multirun",
        tree=(
            "multirun/2024-01-31/09-00-00/multirun.yaml",
            "multirun/2024-01-31/09-00-00/0/model.pt",
            "multirun/2024-01-31/09-00-00/1/model.pt",
        ),
        runs={"multirun/2024-01-31/09-00-00/0": 1, "multirun/2024-01-31/09-00-00/1": 1},
        why="numbered folders are jobs where `.hydra` lies in them or `multirun.yaml` beside them",
    ),
    RunLayout(
        name="numbered folders of trainings",
        writer="own sweeps",
        tree=("0/checkpoints/epoch_1.pt", "0/checkpoints/epoch_2.pt", "1/checkpoints/epoch_1.pt"),
        runs={"0": 2, "1": 1},
        why="a numbered folder in which checkpoints are counted again is a run",
    ),
    RunLayout(
        name="Weights & Biases",
        writer="wandb's local folder",
        tree=(
            "wandb/run-20240131_090000-ab12cd34/files/wandb-metadata.json",
            "wandb/run-20240131_090000-ab12cd34/files/checkpoints/step=10.ckpt",
            "wandb/run-20240201_090000-ef56ab78/files/checkpoints/step=10.ckpt",
            "wandb/latest-run -> run-20240201_090000-ef56ab78",
        ),
        runs={"wandb/run-20240131_090000-ab12cd34": 1, "wandb/run-20240201_090000-ef56ab78": 1},
        why="each `run-*` is a run; a link leads to the same run and is no other",
    ),
    RunLayout(
        name="Lightning with wandb",
        writer="Lightning's WandbLogger",
        tree=(
            "project/ab12cd34/checkpoints/epoch=0-step=10.ckpt",
            "project/ef56ab78/checkpoints/epoch=0-step=10.ckpt",
        ),
        runs={"project/ab12cd34": 1, "project/ef56ab78": 1},
        why="two folders that count for themselves are two trainings",
    ),
    RunLayout(
        name="mlflow",
        writer="mlflow's artifacts",
        tree=(
            "mlruns/0/meta.yaml",
            "mlruns/0/0af5/meta.yaml",
            "mlruns/0/0af5/artifacts/model_checkpoints/epoch_3.pth",
            "mlruns/0/0af5/artifacts/model_checkpoints/latest/checkpoint.pth",
        ),
        runs={"mlruns/0/0af5": 2},
        why="mlflow's `meta.yaml` lies in each run",
    ),
    RunLayout(
        name="Ray Tune",
        writer="Ray Train and Tune",
        tree=(
            "exp/trial_a/checkpoint_000000/model.pt",
            "exp/trial_a/checkpoint_000001/model.pt",
            "exp/trial_b/checkpoint_000000/model.pt",
        ),
        runs={"exp/trial_a": 2, "exp/trial_b": 1},
        why="two folders that count for themselves are two trainings",
    ),
    RunLayout(
        name="LLaMA-Factory and other deep folders",
        writer="LLaMA-Factory",
        tree=(
            "vit/full/sft/checkpoint-500/model.safetensors",
            "vit/full/sft/checkpoint-1000/model.safetensors",
        ),
        runs={"vit/full/sft": 2},
        why="folders are searched as deep as they go",
    ),
    RunLayout(
        name="a training in a training",
        writer="own fine-tuning",
        tree=(
            "checkpoint_0001.pth",
            "checkpoint_0002.pth",
            "extra/model.pth",
            "finetune/checkpoint_0001.pth",
        ),
        runs={".": 3, "finetune": 1},
        why="a folder that counts for itself is a run; one without a count goes with the counted run above",
    ),
    RunLayout(
        name="weights to begin from",
        writer="own projects",
        tree=("resnet50.pth", "exp1/checkpoint_0001.pth", "exp2/checkpoint_0001.pth"),
        runs={"exp1": 1, "exp2": 1},
        why="weights without a count beside runs belong to none of them",
    ),
    RunLayout(
        name="links",
        writer="nerfstudio, own habit",
        tree=(
            "exp1/checkpoint_0001.pth",
            "exp2/checkpoint_0001.pth",
            "latest -> exp2",
            "gone -> nowhere",
        ),
        runs={"exp1": 1, "exp2": 1},
        why="a link leads to the same run; one that leads nowhere is looked at again",
    ),
)
