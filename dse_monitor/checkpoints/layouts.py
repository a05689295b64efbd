"""LAYOUTS: one frozen entry per training code whose checkpoints are known. No torch is imported here.

A location is written ``path/prefix``: the keys that lead to a state dict, joined by dots, then a slash, then
the prefix its tensors carry; ``teacher/backbone.`` is ``checkpoint["teacher"]["backbone.*"]``. Wrapper
modules such as ``module.`` and ``_orig_mod.`` are removed from every name before anything is compared,
so one entry covers files written with and without DistributedDataParallel or torch.compile.

To add a training code: one entry here, and the list of its tensor names in tests/data/layouts.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dse_monitor.checkpoints.families.statedicts import StateDict, unwrapped
from dse_monitor.checkpoints.reading.contents import attributes
from dse_monitor.checkpoints.recognition.dialects import DIALECTS


@dataclass(frozen=True)
class NetworkAt:
    """One network of a file that can be evaluated.

    Attributes:
        name: what ``--encoder`` takes.
        location: ``path/prefix`` as the file spells it; ``*`` stands for anything.
        unless: parts of a location that rule it out.
    """

    name: str
    location: str
    unless: tuple[str, ...] = ()

    def matches(self, location: str) -> bool:
        """Whether an unwrapped location is this one."""
        if any(part in location for part in self.unless):
            return False
        return fnmatch.fnmatchcase(location, unwrapped_location(self.location))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is known about the checkpoints of one training code.

    Attributes:
        name: what ``--layout`` takes.
        title: name of the method or library.
        origin: repository whose files these are.
        example: a file name it writes.
        needs: marks (see :func:`marks`) that must all be there.
        lacks: marks none of which may be there.
        networks: networks that can be evaluated; the first one found is the default.
        evaluated: why the default is the default.
        dialects: names of the dialects its encoders use; empty if any.
        drop: prefixes below the encoder's own that belong to heads or decoders.
        epochs_from_field: added to the stored epoch to get finished epochs.
        steps_from_field: added to the stored step to get finished steps.
        heads_by_width: attention heads of the models this code defines, by embedding width.
        norm_eps: epsilon of its LayerNorms where it differs from the family's usual one.
        details: values of a configuration that an architecture family understands.
        traps: what goes wrong silently when the file is read as something else.
        official: one of the sixteen methods of the DSE paper.
    """

    name: str
    title: str
    origin: str
    example: str
    needs: tuple[str, ...]
    networks: tuple[NetworkAt, ...]
    lacks: tuple[str, ...] = ()
    evaluated: str = ""
    dialects: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    epochs_from_field: int = 0
    steps_from_field: int = 0
    heads_by_width: Mapping[int, int] = field(default_factory=dict)
    norm_eps: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    traps: tuple[str, ...] = ()
    official: bool = False

    def recognises(self, found: frozenset[str]) -> bool:
        """Whether a file with these marks has this layout."""
        return found.issuperset(self.needs) and found.isdisjoint(self.lacks)


def unwrapped_location(location: str) -> str:
    """`location` without wrapper modules in its prefix."""
    path, slash, prefix = location.partition("/")
    return path + slash + unwrapped(prefix)


def marks(tree: Any, states: Iterable[StateDict]) -> frozenset[str]:
    """What layouts are recognised by.

    ``key`` for every top-level key, ``key:name`` for the settings below it, and for every tensor its location
    and every dotted beginning of it (``teacher/backbone.``).
    """
    found: set[str] = set()
    if isinstance(tree, dict):
        found.update(str(key) for key in tree)
        found.update(f"{key}:{name}" for key, value in tree.items() for name in attributes(value))
    for state in states:
        path = ".".join(state.path)
        for name in state.tensors:
            location = f"{path}/{name}"
            found.add(location)
            found.update(f"{path}/{name[: dot.end()]}" for dot in re.finditer(r"\.", name))
    return frozenset(found)


def by_name(name: str) -> Layout:
    """The entry called `name`.

    Raises:
        KeyError: there is none.
    """
    return {layout.name: layout for layout in (*LAYOUTS, PLAIN)}[name]


def matching(found: frozenset[str]) -> list[Layout]:
    """Entries that recognise a file with these marks, in the order of LAYOUTS."""
    return [layout for layout in LAYOUTS if layout.recognises(found)]


def named_by_the_file(layout: Layout, tree: Any) -> str | None:
    """The location of the evaluated network where the file itself names it (dse-train), else None."""
    if layout.name == "dse-train" and isinstance(tree, dict) and isinstance(tree.get("evaluated"), str):
        return f"model/{tree['evaluated']}"
    return None


def table(layouts: Sequence[Layout] | None = None) -> list[dict[str, str]]:
    """Every layout as one row of text, for `dse-monitor layouts` and docs/layouts.md.

    Returns:
        Rows with the keys name, title, example, evaluated, others, epochs and traps.
    """
    rows = []
    for layout in (*LAYOUTS, PLAIN) if layouts is None else layouts:
        first, *others = layout.networks
        epochs = {0: "stored epoch = finished epochs", 1: "stored epoch counts from zero"}
        rows.append(
            {
                "name": layout.name,
                "title": layout.title,
                "origin": layout.origin,
                "example": layout.example,
                "evaluated": f"{first.name} at {first.location}",
                "others": ", ".join(f"{other.name} at {other.location}" for other in others),
                "epochs": epochs[layout.epochs_from_field],
                "traps": " ".join(f"{trap}." for trap in layout.traps),
            }
        )
    return rows


# Copies made for training that are evaluated only where a method says so.
_COPIES = (
    "student",
    "momentum",
    "target",
    "ema",
    "teacher",
    "encoder_k",
    "_k.",
    "key_encoder",
    "key_backbone",
)

_ANY = (
    NetworkAt("teacher", "*teacher*"),
    NetworkAt("ema", "*ema*", unless=("momentum",)),
    NetworkAt("encoder", "*", unless=_COPIES),
    NetworkAt("student", "*student*"),
    NetworkAt("momentum", "*momentum*"),
    NetworkAt("copy", "*"),
)

# Heads of the models each repository defines, by width.
_DINO_VITS = {192: 3, 384: 6, 768: 12}
_IBOT_VITS = {192: 3, 384: 6, 768: 12, 1024: 16}
_MAE_VITS = {384: 6, 768: 12, 1024: 16, 1280: 16}
_IJEPA_VITS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}
_DINOV2_VITS = {384: 6, 768: 12, 1024: 16, 1536: 24}
_DINOV3_VITS = {384: 6, 768: 12, 1024: 16, 1152: 18, 1280: 20, 1536: 24, 4096: 32}

_TEACHER = "the paper and the authors' own evaluation read the teacher"
_ONLINE = "the paper and the authors' own evaluation read the online network"
_COUNTS_FROM_ZERO = "The number in the file name counts from zero and is one less than the finished epochs"
_OVERWRITTEN = "The code keeps one file and overwrites it; only the stored epoch tells versions apart"
_BACKBONE_ONLY = "A final resnet50.pth holds the bare backbone and no epoch; its 50 is not one"

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="dse-train",
        title="dse-train",
        origin="this project",
        example="checkpoint_0010.pth",
        needs=("format", "schema", "backbone", "evaluated", "model"),
        networks=(
            NetworkAt("teacher", "model/teacher.backbone."),
            NetworkAt("student", "model/student.backbone."),
            NetworkAt("encoder", "model/*"),
        ),
        evaluated="the file names the evaluated network itself",
        details={"pad_first": True},  # of its Swins, as in the code of their methods' authors
    ),
    # The sixteen methods of the DSE paper; the default network is the one its numbers come from.
    Layout(
        name="barlowtwins",
        title="Barlow Twins",
        origin="facebookresearch/barlowtwins",
        example="checkpoint_10.pth",
        needs=("model/backbone.", "model/projector.", "model/bn.running_mean"),
        networks=(NetworkAt("backbone", "model/module.backbone."),),
        evaluated="there is one backbone",
        traps=(_OVERWRITTEN, _BACKBONE_ONLY, "module.bn belongs to the loss, not to the stem"),
        official=True,
    ),
    Layout(
        name="byol",
        title="BYOL",
        origin="yaox12/BYOL-PyTorch",
        example="resnet50_10.pth.tar",
        needs=("model/online_network.encoder.", "model/target_network.encoder."),
        networks=(
            NetworkAt("target", "model/module.target_network.encoder."),
            NetworkAt("online", "model/module.online_network.encoder."),
        ),
        evaluated="the paper reads the target network",
        dialects=("ResNet as a sequence",),
        traps=(
            "Children of the encoder are numbered, not named: 0 is conv1, 1 is bn1, 4 to 7 are the stages",
        ),
        official=True,
    ),
    Layout(
        name="densecl",
        title="DenseCL",
        origin="WXinlong/DenseCL",
        example="epoch_10.pth",
        needs=("state_dict/backbone.", "state_dict/encoder_q.0.", "state_dict/encoder_k.0."),
        networks=(
            NetworkAt("backbone", "state_dict/backbone."),
            NetworkAt("encoder_q", "state_dict/encoder_q.0."),
            NetworkAt("encoder_k", "state_dict/encoder_k.0."),
        ),
        evaluated="the paper reads the query network, which the file holds twice: backbone is encoder_q.0",
        traps=(
            "encoder_k is the momentum copy and gives other features",
            "latest.pth is a link to the newest",
        ),
        official=True,
    ),
    Layout(
        name="dino",
        title="DINO",
        origin="facebookresearch/dino",
        example="checkpoint0010.pth",
        needs=("student", "teacher", "dino_loss", "teacher/backbone."),
        networks=(
            NetworkAt("teacher", "teacher/backbone."),
            NetworkAt("student", "student/module.backbone."),
        ),
        evaluated=_TEACHER,
        heads_by_width=_DINO_VITS,
        traps=(_COUNTS_FROM_ZERO,),
        official=True,
    ),
    Layout(
        name="esvit",
        title="EsViT",
        origin="microsoft/esvit",
        example="checkpoint0010.pth",
        needs=("student", "teacher", "dino_loss", "teacher/layers."),
        lacks=("teacher/backbone.",),
        networks=(NetworkAt("teacher", "teacher/"), NetworkAt("student", "student/module.")),
        evaluated=_TEACHER,
        drop=("head.", "head_dense."),
        norm_eps=1e-6,
        details={"pad_first": True, "shift_as_built": True},
        traps=(
            _COUNTS_FROM_ZERO,
            "Teacher keys carry no prefix at all",
            "A stage ends with its merging layer; in timm the next stage begins with it",
            "LayerNorms use epsilon 1e-6 where timm's Swin uses 1e-5",
            "Grids that windows do not divide are filled up before they are shifted; timm shifts first",
        ),
        official=True,
    ),
    Layout(
        name="ibot",
        title="iBOT",
        origin="bytedance/ibot",
        example="checkpoint0040.pth",
        needs=("student", "teacher", "ibot_loss", "teacher/backbone."),
        networks=(
            NetworkAt("teacher", "teacher/backbone."),
            NetworkAt("student", "student/module.backbone."),
        ),
        evaluated=_TEACHER,
        drop=("masked_embed",),
        heads_by_width=_IBOT_VITS,
        norm_eps=1e-6,  # its Swin too
        details={"pad_first": True, "shift_as_built": True},  # of its Swin
        traps=(_COUNTS_FROM_ZERO, "There is no checkpoint0000.pth"),
        official=True,
    ),
    Layout(
        name="ijepa",
        title="I-JEPA",
        origin="facebookresearch/ijepa",
        example="jepa-ep50.pth.tar",
        needs=("encoder", "predictor", "target_encoder", "encoder/patch_embed."),
        networks=(
            NetworkAt("encoder", "encoder/module."),
            NetworkAt("target_encoder", "target_encoder/module."),
        ),
        evaluated="the paper reads the context encoder; the I-JEPA authors evaluate target_encoder",
        heads_by_width=_IJEPA_VITS,
        traps=(
            "The number in the file name is one more than the finished epochs; the stored epoch is right",
            "There is no class token, and the final norm belongs to the tokens",
        ),
        official=True,
    ),
    Layout(
        name="mae",
        title="MAE",
        origin="facebookresearch/mae",
        example="checkpoint-20.pth",
        needs=("model", "model/decoder_embed.", "model/patch_embed.", "model/mask_token"),
        networks=(NetworkAt("encoder", "model/"),),
        evaluated="the encoder, run on unmasked images",
        drop=("decoder_", "mask_token"),
        epochs_from_field=1,
        heads_by_width=_MAE_VITS,
        traps=(
            "The stored epoch counts from zero, unlike the DINO family's: one more epoch is finished",
            "The decoder shares the file and the naming, and is left out",
        ),
        official=True,
    ),
    Layout(
        name="mec",
        title="MEC",
        origin="xinliu20/MEC",
        example="checkpoint_0010.pth.tar",
        needs=("state_dict/encoder.", "state_dict/predictor.", "state_dict/teacher."),
        networks=(
            NetworkAt("encoder", "state_dict/module.encoder."),
            NetworkAt("teacher", "state_dict/module.teacher."),
        ),
        evaluated=_ONLINE,
        drop=("fc.",),
        traps=(_COUNTS_FROM_ZERO,),
        official=True,
    ),
    Layout(
        name="mocov3",
        title="MoCo v3",
        origin="facebookresearch/moco-v3",
        example="checkpoint_0010.pth.tar",
        needs=("state_dict/base_encoder.", "state_dict/momentum_encoder."),
        networks=(
            NetworkAt("momentum_encoder", "state_dict/module.momentum_encoder."),
            NetworkAt("base_encoder", "state_dict/module.base_encoder."),
        ),
        evaluated="the paper reads the momentum encoder; the authors' transfer scripts read base_encoder",
        drop=("head.", "fc."),
        heads_by_width={384: 12, 768: 12},
        traps=(
            _COUNTS_FROM_ZERO,
            "Its ViT-S has 12 heads, not 6: with 6 it loads without complaint and yields wrong features",
        ),
        official=True,
    ),
    Layout(
        name="mugs",
        title="Mugs",
        origin="sail-sg/mugs",
        example="checkpoint0050.pth",
        needs=("student", "teacher", "instance-sup.", "group-sup.", "teacher/backbone."),
        networks=(
            NetworkAt("teacher", "teacher/backbone."),
            NetworkAt("student", "student/module.backbone."),
        ),
        evaluated=_TEACHER,
        drop=("relation_blocks.",),
        heads_by_width=_IBOT_VITS,
        traps=(_COUNTS_FROM_ZERO, "relation_blocks look like blocks of the encoder and are none"),
        official=True,
    ),
    Layout(
        name="resa",
        title="ReSA",
        origin="winci-ai/resa",
        example="checkpoint_0010.pth.tar",
        needs=(
            "state_dict/encoder.",
            "state_dict/projector.",
            "state_dict/momentum_encoder.",
            "state_dict/momentum_projector.",
        ),
        networks=(
            NetworkAt("encoder", "state_dict/module.encoder."),
            NetworkAt("momentum_encoder", "state_dict/module.momentum_encoder."),
        ),
        evaluated="the paper reads the online encoder; the authors evaluate momentum_encoder",
        traps=(_OVERWRITTEN,),
        official=True,
    ),
    Layout(
        name="simsiam",
        title="SimSiam",
        origin="facebookresearch/simsiam",
        example="checkpoint_0010.pth.tar",
        needs=("state_dict/encoder.", "state_dict/encoder.fc.", "state_dict/predictor."),
        lacks=("state_dict/teacher.", "state_dict/momentum_encoder.", "state_dict/projector."),
        networks=(NetworkAt("encoder", "state_dict/module.encoder."),),
        evaluated="there is one encoder",
        drop=("fc.",),
        traps=(_COUNTS_FROM_ZERO,),
        official=True,
    ),
    Layout(
        name="swav",
        title="SwAV",
        origin="facebookresearch/swav",
        example="ckp-25.pth",
        needs=("state_dict/conv1.weight", "state_dict/projection_head.", "state_dict/prototypes."),
        networks=(NetworkAt("encoder", "state_dict/module."),),
        evaluated="there is one encoder",
        drop=("projection_head.", "prototypes."),
        traps=(_COUNTS_FROM_ZERO, "queue0.pth and mb0.pth beside it are no checkpoints"),
        official=True,
    ),
    Layout(
        name="vicreg",
        title="VICReg",
        origin="facebookresearch/vicreg",
        example="model_10.pth",
        needs=("model/backbone.", "model/projector."),
        lacks=("model/bn.running_mean", "model/maps_projector.", "model/classifier."),
        networks=(NetworkAt("backbone", "model/module.backbone."),),
        evaluated="there is one backbone",
        traps=(_OVERWRITTEN, _BACKBONE_ONLY, "The optimiser holds pickled functions, which are not imported"),
        official=True,
    ),
    Layout(
        name="vicregl",
        title="VICRegL",
        origin="facebookresearch/VICRegL",
        example="model_10.pth",
        needs=("model/backbone.", "model/classifier."),
        lacks=("model/bn.running_mean",),
        networks=(NetworkAt("backbone", "model/module.backbone."),),
        evaluated="there is one backbone",
        traps=(
            _OVERWRITTEN,
            "The classifier beside the backbone is a probe trained along, not its last layer",
            "Its ConvNeXt norms every position before pooling, others norm the pooled vector",
        ),
        details={"norm_before_pooling": True},
        official=True,
    ),
    # Other people's training codes and libraries.
    Layout(
        name="dinov3",
        title="DINOv3",
        origin="facebookresearch/dinov3",
        example="ckpt/199",
        needs=(),
        networks=(
            NetworkAt("teacher", "*teacher*backbone.", unless=("gram",)),
            NetworkAt("teacher", "*model_ema*backbone."),
            NetworkAt("teacher", "*", unless=("student", "gram")),
            NetworkAt("gram_teacher", "*gram*"),
            NetworkAt("student", "*student*backbone."),
        ),
        evaluated="the authors evaluate the teacher",
        dialects=("DINOv3", "DINOv3 ConvNeXt"),
        steps_from_field=1,
        heads_by_width=_DINOV3_VITS,
        traps=(
            "Iterations count from zero",
            "Keys have no bias: a third of every qkv.bias is masked",
            "LayerNorms use epsilon 1e-5 as in the released models (layernormbf16); the file does not tell "
            "whether training was set to layernorm, which uses 1e-6",
            "Rotary positions are computed in float32 as in the released models; training rounds them to "
            "bfloat16",
        ),
    ),
    Layout(
        name="dinov2",
        title="DINOv2",
        origin="facebookresearch/dinov2",
        example="eval/training_1249/teacher_checkpoint.pth",
        needs=(),
        networks=(
            NetworkAt("teacher", "teacher/backbone."),
            NetworkAt("teacher", "model/teacher.backbone."),
            NetworkAt("student", "model/student.backbone."),
            NetworkAt("student", "student/backbone."),
        ),
        lacks=("dino_loss", "ibot_loss", "pytorch-lightning_version"),
        evaluated="the authors evaluate the teacher",
        dialects=("timm ViT", "DINOv2 in chunks"),
        steps_from_field=1,
        heads_by_width=_DINOV2_VITS,
        traps=("Iterations count from zero", "rank files hold one shard each"),
    ),
    Layout(
        name="moco",
        title="MoCo v1 and v2",
        origin="facebookresearch/moco",
        example="checkpoint_0199.pth.tar",
        needs=("state_dict/encoder_q.", "state_dict/encoder_k.", "state_dict/queue"),
        lacks=("state_dict/backbone.",),
        networks=(
            NetworkAt("encoder_q", "state_dict/module.encoder_q."),
            NetworkAt("encoder_k", "state_dict/module.encoder_k."),
        ),
        evaluated="the authors' transfer scripts read the query encoder",
        traps=(_COUNTS_FROM_ZERO,),
    ),
    Layout(
        name="timm",
        title="timm",
        origin="huggingface/pytorch-image-models",
        example="checkpoint-12.pth.tar",
        needs=("epoch", "arch", "state_dict", "version"),
        networks=(NetworkAt("ema", "state_dict_ema/"), NetworkAt("model", "state_dict/")),
        evaluated="the averaged weights where they are kept",
        epochs_from_field=1,
        traps=("The stored epoch counts from zero",),
    ),
    Layout(
        name="torchvision",
        title="torchvision references",
        origin="pytorch/vision",
        example="model_89.pth",
        needs=("model", "optimizer", "lr_scheduler", "epoch", "args"),
        networks=(NetworkAt("ema", "model_ema/"), NetworkAt("model", "model/")),
        evaluated="the averaged weights where they are kept",
        epochs_from_field=1,
        traps=("The stored epoch counts from zero",),
    ),
    Layout(
        name="swin",
        title="Swin, SimMIM",
        origin="microsoft/Swin-Transformer",
        example="ckpt_epoch_100.pth",
        needs=("model", "optimizer", "lr_scheduler", "max_accuracy", "epoch"),
        networks=(NetworkAt("model", "model/"), NetworkAt("encoder", "model/encoder.")),
        evaluated="there is one encoder",
        epochs_from_field=1,
        traps=("The stored epoch counts from zero",),
    ),
    Layout(
        name="lightly-train",
        title="lightly-train",
        origin="lightly-ai/lightly-train",
        example="epoch=9-step=1250.ckpt",
        needs=("state_dict", "pytorch-lightning_version"),
        networks=(
            NetworkAt("teacher", "state_dict/*teacher_embedding_model.wrapped_model.*"),
            NetworkAt("model", "state_dict/*embedding_model.wrapped_model.*", unless=("student",)),
            NetworkAt("student", "state_dict/*student_embedding_model.wrapped_model.*"),
        ),
        evaluated="the teacher of the DINO family, else the only model: what lightly-train exports",
        epochs_from_field=1,
        traps=("Whole modules are pickled beside the state dict; they are not imported",),
    ),
    Layout(
        name="solo-learn",
        title="solo-learn",
        origin="vturrisi/solo-learn",
        example="byol-imagenet100-3k2dhs8r-ep=99.ckpt",
        needs=("state_dict", "pytorch-lightning_version", "hyper_parameters:method"),
        networks=(
            NetworkAt("backbone", "state_dict/backbone."),
            NetworkAt("encoder", "state_dict/encoder."),
            NetworkAt("momentum_backbone", "state_dict/momentum_backbone."),
            NetworkAt("momentum_encoder", "state_dict/momentum_encoder."),
        ),
        evaluated="its own evaluation reads the online backbone",
        epochs_from_field=1,
        details={"small_stem_padding": 2},
        traps=("The stem for CIFAR images pads by two pixels",),
    ),
    Layout(
        name="lightning",
        title="Lightning modules (lightly and others)",
        origin="Lightning-AI/pytorch-lightning",
        example="epoch=9-step=1250.ckpt",
        needs=("state_dict", "pytorch-lightning_version"),
        networks=_ANY,
        evaluated="a teacher or averaged copy where there is one, else the online network",
        epochs_from_field=1,
        traps=("The stored epoch counts from zero",),
    ),
    Layout(
        name="mmpretrain",
        title="mmpretrain, mmselfsup, OpenSelfSup",
        origin="open-mmlab/mmpretrain",
        example="epoch_10.pth",
        needs=("meta", "state_dict"),
        networks=(
            NetworkAt("backbone", "state_dict/backbone."),
            NetworkAt("online", "state_dict/online_net.0."),
            NetworkAt("encoder_q", "state_dict/encoder_q.0."),
            NetworkAt("teacher", "state_dict/*teacher*"),
            NetworkAt("target", "state_dict/*target*"),
            NetworkAt("momentum", "state_dict/*momentum*"),
            NetworkAt("encoder_k", "state_dict/encoder_k.0."),
        ),
        evaluated="its own evaluation reads the online backbone",
    ),
    Layout(
        name="vissl",
        title="VISSL",
        origin="facebookresearch/vissl",
        example="model_phase10.torch",
        needs=("classy_state_dict",),
        networks=(NetworkAt("trunk", "classy_state_dict.base_model.model.trunk/*"),),
        evaluated="the trunk",
        traps=("Phases count from zero",),
    ),
    Layout(
        name="huggingface",
        title="Hugging Face transformers (ViT, DINOv2, DINOv3, Swin, ConvNeXt, ResNet)",
        origin="huggingface/transformers",
        example="checkpoint-500",
        needs=(),
        networks=_ANY,
        evaluated="the encoder; config.json beside the file is believed",
        dialects=tuple(each.name for each in DIALECTS if each.name.startswith("Hugging Face")),
        traps=("ViT uses LayerNorm epsilon 1e-12, DINOv3 1e-5",),
    ),
)

# Used when no entry recognises the file but an encoder is plainly there.
PLAIN = Layout(
    name="plain",
    title="a state dict of any origin",
    origin="",
    example="model.pth",
    needs=(),
    networks=_ANY,
    evaluated="a teacher or averaged copy where there is one",
    traps=("Whether a stored epoch counts from zero is not known; it is taken as finished epochs",),
)


def document() -> str:
    """The text of docs/layouts.md.

    ``python -m dse_monitor.checkpoints.layouts > docs/layouts.md`` writes it; a test compares.
    """
    lines = [
        "# Checkpoint layouts",
        "",
        "Generated from `LAYOUTS` in `dse_monitor/checkpoints/layouts.py`; do not edit by hand.",
        "",
        "A location is `path/prefix`: the keys that lead to a state dict, a slash, and what its tensors'",
        'names begin with: `teacher/backbone.` is `checkpoint["teacher"]["backbone.*"]`.',
        "Names of wrapper modules (`module.`, `_orig_mod.`, FSDP's) may be there or not.",
        "The first network found is evaluated; `--encoder NAME` takes another one, `--layout NAME`",
        "another layout.",
        "",
        "To add a training code: one entry in `LAYOUTS` and the list of its tensor names in",
        "`tests/data/layouts/`.",
    ]
    for heading, official in (("The sixteen methods of the paper", True), ("Other training codes", False)):
        lines += ["", f"## {heading}"]
        for layout in (*LAYOUTS, PLAIN):
            if layout.official == official:
                lines += ["", *_section(layout)]
    return "\n".join(lines) + "\n"


def _section(layout: Layout) -> list[str]:
    lines = [f"### {layout.name}", ""]
    where = f", {layout.origin}" if layout.origin else ""
    lines.append(f"{layout.title}{where}. Files such as `{layout.example}`.")
    lines.append("")
    if layout.needs:
        lines.append(f"- recognised by: {', '.join(f'`{need}`' for need in layout.needs)}")
    if layout.lacks:
        lines.append(f"- and by the absence of: {', '.join(f'`{lack}`' for lack in layout.lacks)}")
    if layout.dialects:
        lines.append(f"- names of its tensors: {', '.join(layout.dialects)}")
    networks = [f"`{network.name}` at `{network.location}`" for network in layout.networks]
    lines.append(f"- evaluated: {networks[0]} ({layout.evaluated})")
    if len(networks) > 1:
        lines.append(f"- otherwise: {', '.join(networks[1:])}")
    if layout.heads_by_width:
        heads = ", ".join(f"{width}: {count}" for width, count in layout.heads_by_width.items())
        lines.append(f"- attention heads by width: {heads}")
    if layout.norm_eps:
        lines.append(f"- epsilon of its LayerNorms: {layout.norm_eps:g}")
    counted = "counts from zero, one more is finished" if layout.epochs_from_field else "counts finished ones"
    lines.append(f"- stored epoch: {counted}")
    lines += [f"- mind: {trap}" for trap in layout.traps]
    return lines


if __name__ == "__main__":
    print(document(), end="")
