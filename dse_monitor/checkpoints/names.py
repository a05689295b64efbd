"""What a path says before the file is opened: is it a checkpoint, is it rewritten, how far was training?

Numbers in names mean different things in different training codes: some count from zero, some from one, one
runs ahead of its own counter. PATTERNS is read from the top; the first entry that matches decides. What is
stored inside a checkpoint always beats its name. Standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class NameFacts:
    """What a path says about training progress.

    Attributes:
        epoch_done: finished epochs, or None.
        step_done: finished optimiser steps, or None.
        number: a count whose unit the name does not say, or None.
        saves: whether that number counts what was saved, so that it is neither epochs nor steps.
        pattern: name of the entry of PATTERNS that matched; empty if none did.
        writer: code that writes such names; empty if no pattern matched.
        how: how the number was turned into a count, in words; empty if no pattern matched.
        within_epoch: whether files of this name are saved while the epoch they name is going on.
    """

    epoch_done: float | None = None
    step_done: int | None = None
    number: int | None = None
    saves: bool = False
    pattern: str = ""
    writer: str = ""
    how: str = ""
    within_epoch: bool = False


@dataclass(frozen=True)
class Pattern:
    """One way of naming checkpoints.

    Attributes:
        name: for messages and tests.
        regex: matched against the end of the path, from the start of a path component; groups ``epoch``,
            ``step``, and ``number`` for a count whose unit the name does not say.
        example: a name it must match.
        epoch_offset: added to ``epoch`` to get finished epochs.
        step_offset: added to ``step`` to get finished steps.
        writer: code that writes such names.
        within_epoch: whether it writes them while the epoch they name is going on.
        saves: whether ``number`` counts what was saved.
    """

    name: str
    regex: str
    example: str
    writer: str
    epoch_offset: int = 0
    step_offset: int = 0
    within_epoch: bool = False
    saves: bool = False


# A checkpoint folder may be named itself or through a file in it.
_INSIDE = r"(?:/[^/]+)?"
_BELOW = r"(?:/[^/]+){0,2}"
_TORCH = r"\.(?:pth|pt|bin|ckpt|torch|safetensors|pyth|chkpt|pkl|model|tar)(?:\.tar)?"
# Words before a number that tells how far training was. Names of networks end in numbers, too.
_NETWORKS = (
    r"vit|deit|beit|swin|resn|convn|dense|wide|vgg|effic|mobile|patch|tiny|small|base|large|huge|giant|clip"
)
_PLAIN = rf"(?!(?:[^/]*[-_.])?(?:{_NETWORKS}))[a-z]+(?:[-_.][a-z]+){{0,2}}"

PATTERNS: tuple[Pattern, ...] = (
    Pattern(
        "dino-evaluation",
        r"training_(?P<step>\d+)/(?:sharded_)?teacher_checkpoint(?:\.pth)?(?:/[^/]+)?",
        "eval/training_1249/teacher_checkpoint.pth",
        "DINOv2, DINOv3",
        step_offset=1,
    ),
    Pattern("dinov3", rf"ckpt/(?P<step>\d+)(?:_keep)?{_INSIDE}", "ckpt/199_keep", "DINOv3", step_offset=1),
    Pattern(
        "dinov2-rank",
        r"model_(?P<step>\d{7})\.rank_\d+\.pth",
        "model_0012499.rank_0.pth",
        "DINOv2",
        step_offset=1,
    ),
    Pattern(
        "fvcore", r"model_(?P<step>\d{7})\.pth", "model_0004999.pth", "detectron2, fvcore", step_offset=1
    ),
    Pattern(
        "vissl-phase",
        r"model_(?:final_checkpoint_)?phase(?P<epoch>\d+)(?:_shard\d+)?\.torch",
        "model_final_checkpoint_phase99.torch",
        "VISSL",
        epoch_offset=1,
    ),
    Pattern("vissl-iteration", r"model_iteration(?P<step>\d+)\.torch", "model_iteration1000.torch", "VISSL"),
    Pattern(
        "lightning",
        r"(?:[^/]*[-_])?epoch=(?P<epoch>\d+)[-_]step=(?P<step>\d+)(?:[-_][^/]*)?\.ckpt",
        "epoch=9-step=1250-v1.ckpt",
        "Lightning, lightly or lightly-train",
        epoch_offset=1,
    ),
    Pattern(
        "lightning-epoch",
        r"(?:[^/]*[-_])?epoch=(?P<epoch>\d+)(?:[-_][^/]*)?\.ckpt",
        "vit-epoch=09-val_loss=0.32.ckpt",
        "Lightning",
        epoch_offset=1,
    ),
    Pattern(
        "lightning-step",
        r"(?:[^/]*[-_])?step=(?P<step>\d+)(?:[-_][^/]*)?\.ckpt",
        "step=5000.ckpt",
        "Lightning",
    ),
    Pattern(
        "solo-learn",
        r"[^/]+-ep=(?P<epoch>\d+)\.ckpt",
        "byol-imagenet100-3k2dhs8r-ep=99.ckpt",
        "solo-learn",
        epoch_offset=1,
    ),
    Pattern(
        "timm-recovery",
        r"recovery-(?P<epoch>\d+)-\d+\.pth\.tar",
        "recovery-3-200.pth.tar",
        "timm, within the epoch after the counted ones",
        within_epoch=True,
    ),
    Pattern("timm", r"checkpoint-(?P<epoch>\d+)\.pth\.tar", "checkpoint-12.pth.tar", "timm", epoch_offset=1),
    Pattern("mae", r"checkpoint-(?P<epoch>\d+)\.pth", "checkpoint-10.pth", "MAE", epoch_offset=1),
    Pattern(
        "ijepa",
        r"[^/]+-ep(?P<epoch>\d+)\.pth\.tar",
        "jepa-ep50.pth.tar",
        "I-JEPA, whose names run one ahead of the finished epochs",
        epoch_offset=-1,
    ),
    Pattern("byol", r"resnet\d+_(?P<epoch>\d+)\.pth\.tar", "resnet50_10.pth.tar", "BYOL-PyTorch"),
    Pattern("swav", r"ckp-(?P<epoch>\d+)\.pth", "ckp-25.pth", "SwAV", epoch_offset=1),
    Pattern(
        "dino",
        r"checkpoint(?P<epoch>\d{4})\.pth",
        "checkpoint0010.pth",
        "DINO, iBOT, EsViT, Mugs",
        epoch_offset=1,
    ),
    Pattern(
        "moco-v3",
        r"checkpoint_(?P<epoch>\d{4})\.pth\.tar",
        "checkpoint_0010.pth.tar",
        "MoCo v3, SimSiam, MEC",
        epoch_offset=1,
    ),
    Pattern("swin", r"ckpt_epoch_(?P<epoch>\d+)\.pth", "ckpt_epoch_100.pth", "Swin, SimMIM", epoch_offset=1),
    Pattern(
        "mmengine-epoch",
        r"(?:best_[^/]+_)?epoch_(?P<epoch>\d+)\.pth",
        "best_mIoU_epoch_10.pth",
        "mmengine, mmcv, OpenSelfSup",
    ),
    Pattern("open-clip", r"epoch_(?P<epoch>\d+)\.pt", "epoch_10.pt", "open_clip"),
    Pattern(
        "mmengine-iteration", r"(?:best_[^/]+_)?iter_(?P<step>\d+)\.pth", "iter_1000.pth", "mmengine, mmcv"
    ),
    Pattern("megatron", rf"iter_(?P<step>\d{{7}})(?:/[^/]+)?{_INSIDE}", "iter_0001000", "Megatron"),
    Pattern("deepspeed", rf"global_step(?P<step>\d+){_INSIDE}", "global_step1000", "DeepSpeed"),
    Pattern("torchtitan", rf"step-(?P<step>\d+){_INSIDE}", "step-1000", "torchtitan"),
    Pattern("huggingface", rf"checkpoint-(?P<step>\d+){_INSIDE}", "checkpoint-500", "Hugging Face Trainer"),
    Pattern(
        "composer",
        r"ep(?P<epoch>\d+)-ba(?P<step>\d+)(?:-rank\d+)?(?:\.pt)?(?:/[^/]+)?",
        "ep1-ba100-rank0.pt",
        "composer",
    ),
    Pattern(
        "fairseq-update",
        r"checkpoint_(?P<epoch>\d+)_(?P<step>\d+)\.pt",
        "checkpoint_10_50000.pt",
        "fairseq, within the epoch named",
        epoch_offset=-1,
    ),
    Pattern("fairseq", r"checkpoint(?P<epoch>\d+)\.pt", "checkpoint10.pt", "fairseq, data2vec"),
    Pattern("ultralytics", r"epoch(?P<epoch>\d+)\.pt", "epoch10.pt", "ultralytics", epoch_offset=1),
    Pattern("tensorflow", r"model\.ckpt-(?P<step>\d+)(?:\.[^/]+)?", "model.ckpt-1000.index", "TensorFlow"),
    Pattern(
        "keras",
        r"[^/]*?\.?(?P<epoch>\d+)-\d+\.\d+(?:\.weights)?\.(?:hdf5|h5|keras)",
        "weights.10-0.53.hdf5",
        "Keras",
    ),
    Pattern(
        "done-epochs",
        r"(?:checkpoint|model)_(?P<epoch>\d{1,4})\.pth",
        "checkpoint_0010.pth",
        "dse-train, Barlow Twins, VICReg and VICRegL saving every epoch",
    ),
    Pattern(
        "words-epoch-step",
        rf"(?:[^/]*[-_.])?(?:epochs?|ep|e)[-_=]?(?P<epoch>\d+)[-_.](?:step|iter|it|ba|s)[-_=]?(?P<step>\d+)"
        rf"(?:[-_.][^/]*)?{_TORCH}",
        "vit_epoch_3_step_4000.pt",
        "a name with the words epoch and step",
    ),
    Pattern(
        "words-step-epoch",
        rf"(?:[^/]*[-_.])?(?:global_?step|steps?|iter)[-_=]?(?P<step>\d+)[-_.](?:epoch|ep|e)[-_=]?(?P<epoch>\d+)"
        rf"(?:[-_.][^/]*)?{_TORCH}",
        "checkpoint_step_700_epoch_7.pt",
        "a name with the words step and epoch",
    ),
    Pattern(
        "word-epoch",
        rf"(?:[^/]*[-_.])?(?:epochs?|ep)[-_=]?(?P<epoch>\d+)(?:[-_][^/]*)?{_TORCH}",
        "vit_small_epoch_30.pt",
        "a name with the word epoch",
    ),
    Pattern(
        "epoch-word",
        rf"(?:[^/]*[-_.])?(?P<epoch>\d+)[-_]?(?:epochs?|eps?)(?:[-_][^/]*)?{_TORCH}",
        "pretrain_7ep.pth",
        "a name with a number of epochs",
    ),
    Pattern(
        "letter-epoch",
        rf"(?:[^/]*[-_.])?e(?P<epoch>\d+){_TORCH}",
        "model_e7.pt",
        "a name with e for epoch",
    ),
    Pattern(
        "word-step",
        rf"(?:[^/]*[-_.])?(?:global_?step|steps?|iteration|iter|updates?)[-_=]?(?P<step>\d+)(?:[-_][^/]*)?{_TORCH}",
        "mymodel_step_5000.pt",
        "a name with the word step or iteration",
    ),
    Pattern(
        "epoch-folder",
        rf"(?:best[-_])?(?:checkpoint[-_]|ckpt[-_]|model[-_])?(?:epochs?|ep)[-_=]?(?P<epoch>\d+){_BELOW}",
        "epoch_0/model.safetensors",
        "accelerate's examples or torchtune",
        epoch_offset=1,
    ),
    Pattern(
        "step-folder",
        rf"(?:best[-_])?(?:checkpoint[-_]|ckpt[-_]|model[-_])?(?:global_?step|steps?|iterations?|iter)[-_=]?"
        rf"(?P<step>\d+){_BELOW}",
        "step_100/model.safetensors",
        "accelerate's examples, and often dcp.save",
    ),
    Pattern(
        "accelerate",
        r"checkpoints/checkpoint_(?P<number>\d+)(?:/[^/]+)?",
        "checkpoints/checkpoint_7/model.safetensors",
        "accelerate",
        saves=True,
    ),
    Pattern(
        "numbered-folder",
        rf"(?:checkpoint|ckpt|ckp|snapshot)[-_]?(?P<number>\d+){_BELOW}",
        "checkpoint_1000/model.pt",
        "a folder or file named by a number",
    ),
    Pattern(
        "numbered",
        rf"(?:checkpoint|ckpt|ckp|snapshot|weights|teacher|student|encoder)[-_.]?(?P<number>\d+){_TORCH}",
        "ckpt_12.pt",
        "a checkpoint name with one number",
    ),
    Pattern(
        "plain-number",
        rf"(?:{_PLAIN}[-_.])?(?P<number>\d+){_TORCH}",
        "ssl_0007.pt",
        "a name that ends in a number",
    ),
    Pattern(
        "number-folder",
        rf"(?P<number>\d+){_INSIDE}",
        "0001/model.pt",
        "a folder with a number for a name",
    ),
    Pattern(
        "number-without-suffix",
        r"(?:weights|model|state|save)[-_.]?(?P<number>\d+)",
        "weights_1",
        "a name that ends in a number",
    ),
)

_COMPILED = [(entry, re.compile(rf"(?:^|.*/){entry.regex}", re.IGNORECASE)) for entry in PATTERNS]

# Containers that can be opened. Folders of a distributed checkpoint have names of their own.
_FILES = re.compile(
    r".+\.(?:pth|pt|bin|ckpt|torch|safetensors)(?:\.tar)?|.+\.(?:safetensors|bin)\.index\.json", re.IGNORECASE
)
_FOLDERS = re.compile(
    r"(?:.*/)?(?:ckpt/\d+(?:_keep)?|sharded_teacher_checkpoint|step-\d+|iter_\d{7}|global_step\d+)"
)

# Files that lie beside checkpoints and hold no encoder.
_NEVER = re.compile(
    r"""
      \..*                                            # dot files, .nfs*, .metadata
    | .*\.(?:tmp|temp|part|partial|lock|lck|bak|swp)  # being written, or a leftover
    | .*\.tmp[-._].*  | .*\.orbax-checkpoint-tmp.*
    | tmp.*                                           # timm's tmp.pth.tar, tmp-checkpoint-500
    | optimi[sz]er.*  | .*[-_]optim(?:izer)?(?:_states?)?\..*
    | scheduler.*  | scaler.*  | lr_sched.*
    | rng_state.*  | random_states.*  | training_args.*  | trainer_state.*
    | queue\d*\.pth.* | mb\d*\.pth                    # MoCo and SwAV queues, SwAV's DeepCluster memory
    | (?:train|test|val)(?:feat|feats|features|labels?).*\..*
    | (?:.*[-_.])?(?:linear|lincls|knn|(?:linear[-_]?)?(?:probe|eval|head|cls|classifier))\.[^/]+
    | .*-\d{5}-of-\d{5}\.(?:safetensors|bin)          # one shard: the index stands for all of them
    | .*\.rank_(?!0\.)\d+\.pth                        # one rank of several: rank 0 stands for all of them
    | .*_shard(?!0\.)\d+\.torch
    | .*\.distcp
    | custom_checkpoint_\d+.*  | sampler.*  | dl_state_dict.*  | recipe_state.*  # accelerate's, torchtune's
    """,
    re.VERBOSE | re.IGNORECASE,
)
_NEVER_FOLDER = re.compile(
    r"\..*|tmp.*|.*\.tmp(?:[-._].*)?|.*\.orbax-checkpoint-tmp.*|__pycache__", re.IGNORECASE
)

_ROLLING = re.compile(
    r"""
      (?:checkpoint|ckpt|model|pytorch_model|weights|state|teacher_checkpoint|student|teacher|encoder|backbone)
        \.(?:pth|pt|ckpt|torch|bin|safetensors|npz)(?:\.tar)?
    | (?:.*[-_.])?(?:last|latest|current|best|best_model|newest)(?:[-_].*)?\..+
    | (?:last|latest|best)(?:\.[^/]+)?  | last_checkpoint.*
    | checkpoint_NaN\.pth
    | exported_(?:last|best)\..+
    | recovery\..+
    """,
    re.VERBOSE | re.IGNORECASE,
)


def is_candidate(relative_path: str) -> bool:
    """Whether a file or folder may be a checkpoint with an encoder, judged by its name alone.

    Args:
        relative_path: path below the run, with forward slashes.

    Returns:
        False for optimiser and queue dumps, kNN features, linear probes, single shards, temporary and hidden
        files.
    """
    *folders, name = relative_path.strip("/").split("/")
    if any(_NEVER_FOLDER.fullmatch(folder) for folder in folders) or _NEVER.fullmatch(name):
        return False
    return bool(_FILES.fullmatch(name) or is_checkpoint_folder(relative_path))


def is_checkpoint_folder(relative_path: str) -> bool:
    """Whether a folder's name says it is one checkpoint (torch.distributed, Megatron, DeepSpeed)."""
    return bool(_FOLDERS.fullmatch(relative_path.strip("/")))


def is_rolling(name: str) -> bool:
    """Whether files of this name are rewritten as training goes on: only their content identifies them.

    Args:
        name: file name, or path below the run; a number in a parent folder makes the file one of its own.
    """
    if from_name(name).pattern:
        return False
    return bool(_ROLLING.fullmatch(name.strip("/").rsplit("/", 1)[-1]))


def from_name(relative_path: str) -> NameFacts:
    """Finished epochs and steps as the path tells them; everything None if it does not.

    Args:
        relative_path: path below the run, with forward slashes; parent folders may carry the number.
    """
    path = relative_path.strip("/")
    for entry, regex in _COMPILED:
        match = regex.fullmatch(path)
        if match:
            return _facts(entry, match.groupdict())
    return NameFacts()


def _facts(entry: Pattern, groups: dict[str, str | None]) -> NameFacts:
    epoch, step, number = (groups.get(name) for name in ("epoch", "step", "number"))
    words = []
    if epoch is not None:
        words.append(_words("epoch", int(epoch), entry.epoch_offset))
    if step is not None:
        words.append(_words("step", int(step), entry.step_offset))
    if number is not None:
        words.append(f"number {int(number)}")
    how = f"{' and '.join(words)} in the name"
    return NameFacts(
        epoch_done=None if epoch is None else float(max(int(epoch) + entry.epoch_offset, 0)),
        step_done=None if step is None else max(int(step) + entry.step_offset, 0),
        number=None if number is None else int(number),
        saves=entry.saves,
        pattern=entry.name,
        writer=entry.writer,
        how=how + _unit(entry, number is not None),
        within_epoch=entry.within_epoch,
    )


def _unit(entry: Pattern, bare: bool) -> str:
    if entry.saves:
        return f", which counts what {entry.writer} saved"
    return ", unit unknown" if bare else f"; as {entry.writer} writes it"


def tells_count(relative_path: str) -> bool:
    """Whether a path tells an epoch, a step or another count."""
    return bool(from_name(relative_path).pattern)


def may_hold_weights(relative_path: str) -> bool:
    """Whether a file whose name does not say that it is a checkpoint may be one all the same.

    Args:
        relative_path: path below the run, with forward slashes.
    """
    *folders, name = relative_path.split("/")
    return not (_NEVER.fullmatch(name) or any(_NEVER_FOLDER.fullmatch(folder) for folder in folders))


def _words(unit: str, number: int, offset: int) -> str:
    counted = {0: "counts finished ones", 1: "counts from zero", -1: "runs one ahead"}[offset]
    return f"{unit} {number} ({counted})"
