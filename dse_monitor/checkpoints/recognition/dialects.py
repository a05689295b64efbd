"""How different libraries name the tensors of the same network: the table of dialects, and finding them.

A dialect is recognised by two tensor names that every network of that dialect has; what stands before the
first of them is the prefix of the encoder. Each is turned into timm's names by a function of translations/.
No torch is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints.families.network import NotThisNetwork, Piece
from dse_monitor.checkpoints.families.statedicts import Shape, StateDict
from dse_monitor.checkpoints.recognition.translations import convnext, dinov3, resnet, swin, vit
from dse_monitor.checkpoints.recognition.translations.pieces import Pieces

if TYPE_CHECKING:
    from dse_monitor.checkpoints.reading.contents import TensorRef


# Modules that sit on an encoder, or feed it during training, and take no part in its dense tokens.
HEADS = frozenset(
    (
        "head", "head_dist", "heads", "fc", "fc_norm", "classifier", "last_linear", "pre_logits",
        "attn_pool", "pooler", "projector", "projection", "projection_head", "proj_head", "predictor",
        "prediction_head", "prototypes", "linear", "decoder", "mask_token", "masked_embed",
        "relation_blocks", "queue", "queue_ptr", "lm_head", "dino_head", "ibot_head", "head_dense",
        "n_averaged", "local_cls_norm", "cls_norm",
    )
)  # fmt: skip


class WrappedWeights(NotThisNetwork):
    """Weights are stored in a form they cannot be computed from; says which, and what to do.

    Attributes:
        problem: what was found, without the advice.
        advice: what to do, to stand in the place of any other advice.
    """

    def __init__(self, problem: str, advice: str):
        super().__init__(f"{problem}; {advice}")
        self.problem = problem
        self.advice = advice


@dataclass(frozen=True)
class Dialect:
    """One way of naming the tensors of one architecture family.

    Attributes:
        name: for messages.
        family: key of ``families.FAMILIES``.
        anchor: ends the name of a tensor every such network has; what precedes it is the prefix.
        needs: another tensor below the same prefix that must exist.
        translate: this dialect's pieces -> pieces under timm's names.
        norm_eps: LayerNorm epsilon this dialect's library uses, if it differs from the family's usual one.
        lacks: a tensor below the prefix that must not exist.
        details: how this dialect's library builds the network otherwise than timm; see `Hints.details`.
        model_types: ``model_type`` of the config.json files it is built for; empty if there is none.
        eps_fixed: whether its inner norms ignore ``layer_norm_eps`` of config.json.
    """

    name: str
    family: str
    anchor: str
    needs: str
    translate: Callable[[Pieces], Pieces] = lambda pieces: pieces
    norm_eps: float | None = None
    lacks: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    model_types: tuple[str, ...] = ()
    eps_fixed: bool = False


@dataclass(frozen=True)
class Found:
    """An encoder somewhere in the file: which state dict, below which prefix, in which dialect."""

    state: StateDict
    prefix: str
    dialect: Dialect

    @property
    def location(self) -> str:
        """``path/prefix`` without wrappers, as layouts are matched against."""
        return ".".join(self.state.path) + "/" + self.prefix

    @property
    def spelled(self) -> str:
        """``path/prefix`` as the file spells it."""
        return ".".join(self.state.path) + "/" + self.state.prefix_in_file(self.prefix, self.dialect.anchor)

    def shapes(self) -> dict[str, Shape]:
        """Shapes of the network's tensors by the file's names below the prefix."""
        return self.state.below(self.prefix)

    def references(self) -> dict[str, TensorRef]:
        """The tensors that are stored, by the file's names below the prefix."""
        cut = len(self.prefix)
        return {n[cut:]: ref for n, ref in self.state.tensors.items() if n.startswith(self.prefix)}

    def untranslated(self, drop: tuple[str, ...] = ()) -> Pieces:
        """The tensors below the prefix under the file's own names, those among them that are computed too.

        Args:
            drop: beginnings of names that do not matter, besides HEADS: a weight below them that cannot be
                computed is left out.

        Raises:
            WrappedWeights: any other cannot be.
        """
        cut = len(self.prefix)
        pieces: Pieces = {}
        for name, shape in self.shapes().items():
            made = self.state.folding.folded.get(self.prefix + name)
            if made is None:
                pieces[name] = Piece((name,), shape)
            elif made.refusal is None:
                pieces[name] = Piece(tuple(source[cut:] for source in made.sources), shape, made.make)
            elif name.split(".", 1)[0] not in HEADS and not (drop and name.startswith(drop)):
                raise WrappedWeights(made.refusal.problem, made.refusal.advice)
        return pieces

    def pieces(self, drop: tuple[str, ...] = ()) -> Pieces:
        """The tensors below the prefix under timm's names.

        Args:
            drop: as in `untranslated`.

        Raises:
            NotThisNetwork: they are no network of this dialect, or are stored in a form that is not known
                (then it is a `WrappedWeights`).
        """
        return self.dialect.translate(self.untranslated(drop))

    def computed(self) -> tuple[str, ...]:
        """How weights below the prefix are computed, with their number: ``("weight norm (24)",)``."""
        counts: dict[str, int] = {}
        for name, made in self.state.folding.folded.items():
            if name.startswith(self.prefix) and made.refusal is None:
                counts[made.how] = counts.get(made.how, 0) + 1
        return tuple(f"{how} ({count})" for how, count in counts.items())


def find(states: list[StateDict], dialects: Sequence[Dialect] | None = None) -> Iterator[Found]:
    """Every encoder in the file that these dialects name (DIALECTS if None), in the file's order."""
    for state in states:
        for name in state.weights:
            for dialect in DIALECTS if dialects is None else dialects:
                if name == dialect.anchor or name.endswith("." + dialect.anchor):
                    prefix = name[: len(name) - len(dialect.anchor)]
                    absent = not dialect.lacks or prefix + dialect.lacks not in state.weights
                    if absent and prefix + dialect.needs in state.weights:
                        yield Found(state, prefix, dialect)
                        break


# Names of a network that transformers itself builds from config.json.
TRANSFORMERS = "Hugging Face, as its class writes them"

# What transformers builds from the same ViT blocks, with these values of config.json's model_type.
_VITS = ("vit", "vit_mae", "vit_msn", "deit", "ijepa")

# The first that fits decides; dialects that share an anchor differ in what else they need.
DIALECTS: tuple[Dialect, ...] = (
    Dialect("DINOv3", "dinov3", "patch_embed.proj.weight", "rope_embed.periods", dinov3.original),
    Dialect("timm DINOv3", "dinov3", "patch_embed.proj.weight", "reg_token", lacks="pos_embed"),
    Dialect(
        "Hugging Face DINOv3",
        "dinov3",
        "embeddings.patch_embeddings.weight",
        "layer.0.attention.q_proj.weight",
        dinov3.huggingface,
        model_types=("dinov3_vit",),
    ),
    Dialect(
        "Hugging Face DINOv3 (in memory)",
        "dinov3",
        "embeddings.patch_embeddings.weight",
        "model.layer.0.attention.q_proj.weight",
        dinov3.huggingface,
        model_types=("dinov3_vit",),
    ),
    Dialect("timm ViT", "vit", "patch_embed.proj.weight", "blocks.0.norm1.weight", vit.timm),
    Dialect(
        "ViT with a convolutional stem",
        "vit",
        "patch_embed.proj.12.weight",
        "blocks.0.norm1.weight",
        vit.timm,
    ),
    Dialect("DINOv2 in chunks", "vit", "patch_embed.proj.weight", "blocks.0.0.norm1.weight", vit.timm),
    Dialect(
        "CLIP ViT",
        "vit",
        "conv1.weight",
        "transformer.resblocks.0.ln_1.weight",
        vit.clip,
        norm_eps=1e-5,  # torch's own, in OpenAI's code and open_clip's
    ),
    Dialect("torchvision ViT", "vit", "conv_proj.weight", "encoder.pos_embedding", vit.torchvision),
    Dialect(
        "Hugging Face DINOv2",
        "vit",
        "embeddings.patch_embeddings.projection.weight",
        "encoder.layer.0.norm1.weight",
        vit.huggingface,
        model_types=("dinov2", "dinov2_with_registers"),
    ),
    Dialect(
        "Hugging Face ViT",
        "vit",
        "embeddings.patch_embeddings.projection.weight",
        "encoder.layer.0.layernorm_before.weight",
        vit.huggingface,
        norm_eps=1e-12,  # transformers' default for ViT and ViT-MAE
        model_types=_VITS,
    ),
    Dialect(
        "Hugging Face ViT (in memory)",
        "vit",
        "embeddings.patch_embeddings.projection.weight",
        "layers.0.layernorm_before.weight",
        vit.huggingface,
        norm_eps=1e-12,
        model_types=_VITS,
    ),
    Dialect(
        "Hugging Face Swin",
        "swin",
        "embeddings.patch_embeddings.projection.weight",
        "encoder.layers.0.blocks.0.layernorm_before.weight",
        swin.huggingface,
        details={"pad_first": True},
        model_types=("swin", "maskformer-swin", "donut-swin", "swinv2"),
    ),
    Dialect(
        "mmpretrain ViT", "vit", "patch_embed.projection.weight", "layers.0.attn.qkv.weight", vit.mmpretrain
    ),
    Dialect(
        "official Swin",
        "swin",
        "patch_embed.proj.weight",
        "layers.0.downsample.reduction.weight",
        swin.official,
    ),
    Dialect("timm Swin", "swin", "patch_embed.proj.weight", "layers.0.blocks.0.norm1.weight", swin.timm),
    Dialect(
        "torchvision Swin",
        "swin",
        "features.0.0.weight",
        "features.1.0.attn.qkv.weight",
        swin.torchvision,
        details={"pad_first": True},
    ),
    Dialect(
        "mmpretrain Swin",
        "swin",
        "patch_embed.projection.weight",
        "stages.0.blocks.0.attn.w_msa.qkv.weight",
        swin.mmpretrain,
        details={"pad_first": True},
    ),
    Dialect("timm ConvNeXt", "convnext", "stem.0.weight", "stages.0.blocks.0.conv_dw.weight"),
    Dialect(
        "DINOv3 ConvNeXt",
        "convnext",
        "downsample_layers.0.0.weight",
        "norms.3.weight",
        convnext.dinov3,
        details={"norm_before_pooling": True},
    ),
    Dialect(
        "original ConvNeXt",
        "convnext",
        "downsample_layers.0.0.weight",
        "stages.0.0.dwconv.weight",
        convnext.original,
    ),
    Dialect(
        "Hugging Face ConvNeXt",
        "convnext",
        "embeddings.patch_embeddings.weight",
        "encoder.stages.0.layers.0.dwconv.weight",
        convnext.huggingface,
        model_types=("convnext", "convnextv2"),
        eps_fixed=True,
    ),
    Dialect(
        "Hugging Face DINOv3 ConvNeXt (in memory)",
        "convnext",
        "model.stages.0.downsample_layers.0.weight",
        "layer_norm.weight",
        convnext.huggingface_dinov3,
        details={"norm_before_pooling": True},
        model_types=("dinov3_convnext",),
    ),
    Dialect(
        "Hugging Face DINOv3 ConvNeXt",
        "convnext",
        "stages.0.downsample_layers.0.weight",
        "stages.0.layers.0.depthwise_conv.weight",
        convnext.huggingface_dinov3,
        details={"norm_before_pooling": True},
        model_types=("dinov3_convnext",),
    ),
    Dialect(
        "torchvision ConvNeXt",
        "convnext",
        "features.0.0.weight",
        "features.1.0.block.0.weight",
        convnext.torchvision,
    ),
    Dialect(
        "ResNet with shortcuts",  # lightly's own for small images, and the CIFAR code it comes from
        "resnet",
        "conv1.weight",
        "layer2.0.shortcut.1.weight",
        resnet.shortcuts,
    ),
    Dialect("ResNet", "resnet", "conv1.weight", "layer1.0.conv1.weight"),
    Dialect("ResNet with a deep stem", "resnet", "conv1.0.weight", "layer1.0.conv1.weight"),
    Dialect(
        "Hugging Face ResNet",
        "resnet",
        "embedder.embedder.convolution.weight",
        "encoder.stages.0.layers.0.layer.0.convolution.weight",
        resnet.huggingface,
        details={"relu_inside": True},  # of its blocks, whatever hidden_act says of what stands between them
        model_types=("resnet",),
    ),
    Dialect("ResNet as a sequence", "resnet", "0.weight", "4.0.conv1.weight", resnet.sequential),
)
