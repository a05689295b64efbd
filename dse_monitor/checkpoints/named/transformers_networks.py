"""A vision network of transformers, built from config.json by its own class; nothing is fetched or executed.

The class and its settings come from config.json, the weights from the file through our own reader. Names are
matched as the installed release of transformers writes them, which differ from those in memory.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints.families.network import IMAGE_SIZE, Hints, Network, NotThisNetwork
from dse_monitor.checkpoints.families.statedicts import Shape, unwrapped
from dse_monitor.checkpoints.named import options
from dse_monitor.checkpoints.named.construction import Template, output_of, quiet, refused, template
from dse_monitor.checkpoints.named.towers import OTHER_INPUTS, TOWERS, Tower
from dse_monitor.checkpoints.recognition.translations.pieces import Pieces
from dse_monitor.facts import Fact
from dse_monitor.tokens import Tokens, from_map

if TYPE_CHECKING:
    from torch import Tensor, nn

_NOT_RUN = "config.json asks for code of its own (auto_map); it is not run."

# Settings that choose code, fetch weights, or change the form of the output, and nothing it is made of.
_LEFT_OUT = frozenset(
    (
        "architectures", "attn_implementation", "auto_map", "backbone", "backbone_config", "backbone_kwargs",
        "device_map", "dtype", "id2label", "label2id", "model_type", "name_or_path", "output_attentions",
        "output_hidden_states", "problem_type", "pruned_heads", "quantization_config", "return_dict",
        "task_specific_params", "tie_word_embeddings", "torch_dtype", "torchscript", "transformers_version",
        "use_pretrained_backbone", "use_return_dict", "use_timm_backbone",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Described:
    """A network as config.json describes it.

    Attributes:
        model_type: its name in transformers.
        tower: the class that encodes its images.
        settings: what that class is configured with.
        ignores_code: whether config.json asks for code of its own (`auto_map`), which is not run.
    """

    model_type: str
    tower: Tower
    settings: Mapping[str, Any]
    ignores_code: bool = False

    @property
    def spelled(self) -> str:
        """The network in words."""
        return f"{self.tower.cls} of transformers"

    @cached_property
    def made(self) -> Template:
        """The network without numbers.

        Raises:
            NotThisNetwork: transformers does not build it so.
        """
        return template(partial(_make, self.tower, self.settings), self.spelled)

    @cached_property
    def in_file(self) -> dict[str, str]:
        """Name in a file of each tensor by its name in memory, without what is common to all and wrappers.

        Raises:
            NotThisNetwork: the installed release stores a tensor in another form than it computes with.
        """
        names = _names_in_files(self.made.module, self.spelled)
        common = _common(list(names.values()))
        short = {name: stored[len(common) :] for name, stored in names.items()}
        clean = {name: unwrapped(stored) for name, stored in short.items()}
        return clean if len(set(clean.values())) == len(clean) else short  # as state dicts are read

    def translate(self, pieces: Pieces) -> Pieces:
        """The file's pieces under their names in memory; others keep theirs."""
        back = {stored: name for name, stored in self.in_file.items()}
        return {back.get(name, name): piece for name, piece in pieces.items()}


def described(config: Mapping[str, Any]) -> Described | None:
    """The network of config.json; None if no class here encodes images for its `model_type`.

    Raises:
        NotThisNetwork: its input is no image, its settings are beyond bounds, or transformers is missing.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return None
    if model_type in OTHER_INPUTS:
        raise NotThisNetwork(
            f"config.json says model_type {model_type!r}, whose input is {OTHER_INPUTS[model_type]}; "
            "such networks are read with --network, by a function of yours"
        )
    tower = TOWERS.get(model_type)
    if tower is None:
        return None
    if config.get("is_hybrid") or config.get("backbone") or config.get("backbone_config"):
        raise NotThisNetwork(
            f"config.json says model_type {model_type!r} on top of another backbone, which is not read"
        )
    if importlib.util.find_spec("transformers") is None:
        raise NotThisNetwork(
            f"config.json says model_type {model_type!r}, which transformers builds: pip install transformers"
        )
    part = config.get(tower.within, {}) if tower.within else config
    if not isinstance(part, Mapping):
        raise NotThisNetwork(f"{tower.within} of config.json is no group of settings")
    kept = {key: value for key, value in part.items() if key not in _LEFT_OUT and not key.startswith("_")}
    return Described(model_type, tower, options.recorded(kept, "config.json"), "auto_map" in config)


def recognise(network: Described, shapes: Mapping[str, Shape], hints: Hints) -> Network:
    """The network, if every tensor it needs is among `shapes`, which are named as in memory.

    Raises:
        NotThisNetwork: it does not fit, or its output is no map of tokens.
    """
    made, tower = network.made, network.tower
    odd = [name for name in made.misfits(dict(shapes)) if name in shapes]
    if odd:
        raise NotThisNetwork(
            f"as {network.spelled} with the settings of config.json, {len(odd)} tensors have other shapes, "
            f"such as {odd[0]}: {list(shapes[odd[0]])} instead of {list(made.tensors[odd[0]])}"
        )
    config = made.module.config
    named = (getattr(config, name, None) for name in ("num_channels", "in_channels", "in_chans"))
    channels = int(next((count for count in named if count), 3))
    own = _sides(getattr(config, "image_size", None) or getattr(config, "crop_size", None))
    wanted = hints.stated.get("image_size")
    size, source, assumed = own or (IMAGE_SIZE, IMAGE_SIZE), "image_size of config.json", False
    read = _reading(network, channels, size) if wanted is None or own else None
    if wanted is not None and _sides(wanted.value) not in (None, own):
        asked = _sides(wanted.value) or size
        try:
            read, size, source = _reading(network, channels, asked), asked, wanted.source
        except NotThisNetwork:
            if not own:
                raise
    if own is None and source == "image_size of config.json":
        source, assumed = "config.json names no image size; as in most recipes", True
    assert read is not None
    grid, width = read
    return Network(
        family="transformers",
        description=network.spelled + (f", {channels} channels" if channels != 3 else ""),
        build=partial(_make, tower, network.settings),
        tensors=made.tensors,
        buffers=made.buffers,
        computed=made.computed,
        tokens=partial(_tokens, tower),
        grid=grid,
        width=width,
        channels=channels,
        image_size=size,
        any_size=_any_size(network, channels, size),
        heads=_heads(config),
        facts=(
            Fact("architecture", network.spelled, f"model_type {network.model_type!r} in config.json"),
            *_activation(config),
            *_frames(tower, config),
            Fact("image shape", f"{size[0]} x {size[1]} px", source, assumed, usual=size[0] == size[1]),
        ),
        outside=frozenset(tower.outside),
        notes=(_NOT_RUN,) if network.ignores_code else (),
    )


# Building


def _make(tower: Tower, settings: Mapping[str, Any]) -> nn.Module:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import transformers

    with quiet(), refused(f"{tower.cls} of transformers"):
        kind = getattr(transformers, tower.cls, None)
        if kind is None:
            raise NotThisNetwork(f"the installed transformers {transformers.__version__} has no {tower.cls}")
        config = kind.config_class(**settings)
        return kind(config, **tower.arguments).eval()


def _names_in_files(module: Any, what: str) -> dict[str, str]:
    state = module.state_dict()
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # releases before 5 write the names they have in memory
        return {name: name for name in state}
    with quiet(), refused(what):
        stored = {id(tensor): name for name, tensor in revert_weight_conversion(module, dict(state)).items()}
    changed = [name for name, tensor in state.items() if id(tensor) not in stored]
    if changed:
        raise NotThisNetwork(
            f"the installed transformers stores {what} in another form than it computes with, such as "
            f"{changed[0]}"
        )
    return {name: stored[id(tensor)] for name, tensor in state.items()}


def _common(names: list[str]) -> str:
    """The module below which all tensors are, such as ``vision_model.``; empty if there is none."""
    parts = [name.split(".")[:-1] for name in names]
    shared = 0
    while all(len(each) > shared and each[shared] == parts[0][shared] for each in parts):
        shared += 1
    return "".join(f"{part}." for part in parts[0][:shared])


# What it does


def _tokens(tower: Tower, module: Any, images: Tensor, layer: int | None = None) -> Tokens:
    """The last hidden state of images [B, C, H, W]: other tokens apart, maps read row by row."""
    features = _forward(tower, module, images)
    if features.ndim == 4:
        return from_map(features)
    after = int(getattr(module.config, tower.after)) if tower.after else 0
    end = features.shape[1] - after
    cls = features[:, 0] if tower.prefix else None
    return Tokens(features[:, tower.prefix : end], cls, features[:, end:] if after else None)


def _forward(tower: Tower, module: Any, images: Tensor) -> Tensor:
    if tower.frames:
        still = images[:, None].repeat(1, getattr(module.config, tower.frames), 1, 1, 1)
        return module(pixel_values_videos=still, skip_predictor=True, return_dict=True).last_hidden_state
    return module(pixel_values=images, return_dict=True).last_hidden_state


def _reading(network: Described, channels: int, size: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """Rows and columns of the tokens at this image size, and their width."""
    features = output_of(network.made, partial(_forward, network.tower), (channels, *size))
    if getattr(features, "ndim", 0) == 4:
        return (features.shape[2], features.shape[3]), features.shape[1]
    if getattr(features, "ndim", 0) != 3:
        raise NotThisNetwork(f"{network.spelled} gives out neither tokens nor a map")
    after = getattr(network.made.module.config, network.tower.after) if network.tower.after else 0
    count = features.shape[1] - network.tower.prefix - after
    rows = round(math.sqrt(count * size[0] / size[1]))
    if rows < 1 or count % rows or abs(count // rows - rows * size[1] / size[0]) >= 1:
        raise NotThisNetwork(
            f"its {count} tokens for {size[0]} x {size[1]} pixels are not rows and columns of equal patches"
        )
    return (rows, count // rows), features.shape[2]


def _any_size(network: Described, channels: int, size: tuple[int, int]) -> bool:
    try:
        _reading(network, channels, (2 * size[0], 2 * size[1]))
    except NotThisNetwork:
        return False
    return True


def _sides(value: Any) -> tuple[int, int] | None:
    """Height and width of a setting that holds one side or both."""
    sides = [value] if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(sides, (list, tuple)) or not 1 <= len(sides) <= 2:
        return None
    if not all(isinstance(side, int) and side > 0 for side in sides):
        return None
    return int(sides[0]), int(sides[-1])


def _heads(config: Any) -> str:
    count = getattr(config, "num_attention_heads", None)
    return f"{count} (config.json)" if isinstance(count, int) else ""


def _frames(tower: Tower, config: Any) -> tuple[Fact, ...]:
    if not tower.frames:
        return ()
    count = getattr(config, tower.frames)
    source = f"images stand still; {tower.frames} of config.json"
    return (Fact("frames", f"the image, given {count} times", source, usual=False),)


def _activation(config: Any) -> tuple[Fact, ...]:
    act = getattr(config, "hidden_act", None)
    return (Fact("activation", act, "hidden_act of config.json"),) if isinstance(act, str) else ()
