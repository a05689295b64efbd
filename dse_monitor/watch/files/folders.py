"""What a folder is: part of the run above it, one checkpoint of it, or a run of its own.

A name says something, and what lies in a folder says more: evidence beats names where both speak. The rule in
words, with an example of each layout, is docs/run_layouts.md, made from layouts.py.
"""

from __future__ import annotations

import re
from enum import Enum


class Kind(Enum):
    """What the name of a folder says."""

    PART = "part"  # holds checkpoints of the run above: `checkpoints`, `weights`
    COUNT = "count"  # one checkpoint of the run above: `epoch_0`, `step_100`, `checkpoint-500`
    NUMBER = "number"  # one checkpoint, or a job of its own: `0001`, `7`
    RUN = "run"  # a run: `version_0`, `run-20240101_120000-ab12`, a date, a time
    OTHER = "other"  # says nothing
    CLOSED = "closed"  # holds no checkpoints and is never entered


_PARTS = frozenset(
    "checkpoint checkpoints ckpt ckpts weights model models snapshot snapshots saved_models exported_models "
    "eval teacher student ema files artifacts model_checkpoints milestones periodic".split()
)
# As folders, copies of a checkpoint of the run above; as links, they often lead to another run.
_POINTERS = frozenset("best last latest latest-run current newest final keep".split())
_MARKED = r"(?:checkpoint|ckpt|model|weights)[-_](?:best|last|latest|final)"
_WORDS = r"epochs?|ep|global_?steps?|steps?|iterations?|iter|checkpoint|ckpt|ckp|snapshot|ba|updates?|tokens"

_RULES: tuple[tuple[Kind, str], ...] = (
    (
        Kind.CLOSED,
        r"\..* | tmp.* | .*\.tmp(?:[-._].*)? | .*\.orbax-checkpoint-tmp.* | __pycache__ | site-packages"
        r"| node_modules | lost\+found | optimi[sz]er(?:_\d+)?",  # the last: FSDP's state of the optimiser
    ),
    (Kind.PART, _MARKED),
    (
        Kind.RUN,
        r"version_\d+ | run[-_].+ | (?:run|exp|trial|fold|seed|job)[-_=]?\d+"
        r"| (?:19|20)\d\d[-_.]?(?:0\d|1[0-2])[-_.]?[0-3]\d (?:[-_T.\ ].*)?"  # a date, perhaps a time
        r"| [0-2]\d[-_.:][0-5]\d[-_.:][0-5]\d (?:[-_.].*)?"  # a time
        r"| [A-Z][a-z][a-z][0-3]\d_[0-2]\d-[0-5]\d-[0-5]\d_.*",  # as TensorBoard's SummaryWriter names them
    ),
    (Kind.NUMBER, r"\d+(?:_keep)? | (?:training|model|state|save)[-_]\d+"),
    (
        Kind.COUNT,
        rf"(?:best[-_])? (?:(?:checkpoint|ckpt|model|weights|state)[-_])? (?:{_WORDS})[-_=.]?\d+(?:\.\d+)?"
        rf"(?:[-_,](?:{_WORDS}|rank)[-_=.]?\d+)* | pytorch_model_fsdp_\d+ | pytorch_model(?:_\d+)?",
    ),
)
_COMPILED = tuple((kind, re.compile(rule, re.VERBOSE | re.IGNORECASE)) for kind, rule in _RULES)

# Written once per training, into its folder. A config.json says nothing: it lies in each checkpoint, too.
EVIDENCE = {
    "hparams.yaml": "hparams.yaml",
    ".hydra": ".hydra",
    "wandb-metadata.json": "wandb-metadata.json",
    "meta.yaml": "meta.yaml of mlflow",
}
EVENTS = "events.out.tfevents"
JOBS = "multirun.yaml"  # hydra: the numbered folders beside it are jobs


def kind_of(name: str, *, link: bool = False) -> Kind:
    """What a folder's name says.

    Args:
        name: of the folder.
        link: whether it is a link, whose name says less: `latest` may lead to another run.
    """
    lower = name.lower()
    if lower in _POINTERS:
        return Kind.OTHER if link else Kind.PART
    if lower in _PARTS:
        return Kind.PART
    return next((kind for kind, rule in _COMPILED if rule.fullmatch(name)), Kind.OTHER)


# Files that hold no weights, by their last suffix: they are passed over without another thought.
FOREIGN = frozenset(
    ".png .jpg .jpeg .gif .webp .bmp .tif .tiff .svg .ppm .mp4 .avi .webm .mov .wav .mp3 .flac .npy "
    ".npz .mat .txt .log .out .err .jsonl .yaml .yml .toml .ini .cfg .conf .csv .tsv .md .rst .html "
    ".xml .pdf .ipynb .py .pyc .pyi .so .c .h .cpp .cu .js .css .sh .sbatch .gz .xz .bz2 .zst .zip .7z "
    ".rar .parquet .arrow .feather .tfrecord .lmdb .mdb .db .sqlite .h5 .hdf5 .keras .index .pid .lock "
    ".prof .trace .wandb .patch .diff .nii .dcm .onnx .gguf".split()
)
FOREIGN |= {suffix.upper() for suffix in FOREIGN}
