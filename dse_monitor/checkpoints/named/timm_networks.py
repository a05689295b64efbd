"""A network of timm by its name, built by timm for the channels and image size its tensors were made for."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints.families.network import IMAGE_SIZE, Hints, Network, NotThisNetwork, Stated
from dse_monitor.checkpoints.families.statedicts import Shape
from dse_monitor.checkpoints.named import options
from dse_monitor.checkpoints.named.construction import Template, quiet, template
from dse_monitor.checkpoints.named.readers import CHANNELS_FIRST, LAST_STAGE, Reading, reading
from dse_monitor.errors import AmbiguousArchitecture, FeatureError
from dse_monitor.facts import Fact
from dse_monitor.preprocessing import INTERPOLATIONS

if TYPE_CHECKING:
    from torch import nn

_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")  # no source such as hf-hub: or local-dir:, and no path
_MAX_STATISTIC = 1e6  # of a channel: larger than any of 16-bit images
_KEPT = 8  # templates; they hold no numbers
_MADE: dict[str, Template] = {}


@dataclass(frozen=True, kw_only=True)
class Named:
    """A network that somebody names, and with which arguments.

    Attributes:
        arch: name in timm's registry.
        source: who names it: "--arch", or a field of the file.
        arguments: what it is built with beside its name.
        image_size: height and width of the images it was made for, px, and where that is said.
        by_layer: whether a layer's tokens are asked for by its number.
        trained_by_timm: whether timm's own training wrote the file, whose preprocessing follows from the
            network's configuration wherever the file says nothing else.
    """

    arch: str
    source: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    image_size: Stated | None = None
    by_layer: bool = False
    trained_by_timm: bool = False

    @property
    def spelled(self) -> str:
        """The network in words."""
        given = options.said(self.arguments)
        return f"{self.arch} of timm" + (f" with {given}" if given else "")


def is_known(arch: str) -> bool:
    """Whether timm has a network of that name; nothing that names a place to fetch from is one."""
    import timm

    return bool(_NAME.fullmatch(arch)) and bool(timm.is_model(arch))


def check_name(arch: str) -> None:
    """Refuse a name that timm does not have.

    Raises:
        NotThisNetwork: names those that are spelled like it.
    """
    import timm

    if is_known(arch):
        return
    near = difflib.get_close_matches(arch, timm.list_models(), n=3)
    raise NotThisNetwork(
        f"timm has no model {arch[:80]!r}" + (f"; near it: {', '.join(near)}" if near else "")
    )


def refusal(arch: str, arch_options: tuple[str, ...]) -> str:
    """Why timm does not build this, whatever the file; empty if it does."""
    try:
        plain(Named(arch=arch, source="--arch", arguments=options.parsed(arch_options)))
    except NotThisNetwork as error:
        return str(error)
    return ""


def plain(named: Named) -> Template:
    """The network as timm builds it with these arguments, whatever the file's shapes.

    Raises:
        NotThisNetwork: timm has no such network, or does not build it so.
    """
    check_name(named.arch)
    return _template(named.arch, dict(named.arguments))


def heads_of(named: Named, made: Template) -> frozenset[str]:
    """Tensors of its classifier, which take no part in its tokens."""
    try:
        whole = template(partial(_make, named.arch, {**named.arguments, "num_classes": 2}), named.arch)
    except NotThisNetwork:
        return frozenset()
    return frozenset(whole.tensors.keys() - made.tensors.keys())


def recognise(named: Named, shapes: Mapping[str, Shape], hints: Hints) -> Network:
    """The network, built so that every tensor it needs is among `shapes`.

    Raises:
        NotThisNetwork: it does not fit, cannot be built, or its output is no map of tokens.
        AmbiguousArchitecture: its heads contradict those of the training code.
        FeatureError: the image size that the user asks for is none it takes.
    """
    check_name(named.arch)
    arguments = dict(named.arguments)
    if hints.num_heads is not None:
        arguments.setdefault("num_heads", hints.num_heads)
    made = _template(named.arch, arguments)
    _check_heads(named, made.module, hints)
    made = _fitted(named, arguments, made, shapes)
    made, read, size, source = _at_size(named, arguments, made, shapes, _channels(made, arguments))
    channels = _channels(made, arguments)
    given = {key: value for key, value in arguments.items() if key != "in_chans"}
    spelled = f"{named.arch} of timm" + (f" with {options.said(given)}" if given else "")
    heads = _heads(made.module)
    return Network(
        family="timm",
        description=spelled + (f", {channels} channels" if channels != 3 else ""),
        build=partial(_make, named.arch, arguments | {"num_classes": 0}),
        tensors=made.tensors,
        buffers=made.buffers,
        computed=made.computed,
        tokens=read.tokens,
        grid=read.grid,
        width=read.width,
        channels=channels,
        image_size=size,
        any_size=_any_size(made, channels, size, read),
        layers=read.layers,
        convolutional=read.kind == CHANNELS_FIRST and heads == 0,
        heads=f"{heads} ({named.arch} of timm)" if heads else "",
        facts=(
            Fact("architecture", spelled, named.source),
            *_unseen(made.module, heads, f"as timm builds {named.arch}"),
            Fact("image shape", f"{size[0]} x {size[1]} px", *source, usual=size[0] == size[1]),
            *(
                [Fact("tokens", read.kind, f"what {type(made.module).__name__} of timm gives out")]
                if read.kind == LAST_STAGE
                else []
            ),
        ),
        defaults=_defaults(named, made.module, channels),
        outside=heads_of(named, made),
    )


# Building


def _make(arch: str, arguments: Mapping[str, Any]) -> nn.Module:
    import timm

    with quiet():
        return timm.create_model(arch, pretrained=False, **arguments).eval()


def _template(arch: str, arguments: Mapping[str, Any]) -> Template:
    """The network without numbers; a watcher asks for the same one at every checkpoint."""
    key = repr((arch, sorted(arguments.items())))
    if key not in _MADE:
        given = options.said(arguments)
        what = f"{arch} of timm" + (f" with {given}" if given else "")
        makers: list[Callable[..., Any]] = []
        if arguments:
            makers.append(type(_template(arch, {}).module).__init__)
        made = template(partial(_make, arch, {**arguments, "num_classes": 0}), what, makers)
        while len(_MADE) >= _KEPT:
            del _MADE[next(iter(_MADE))]
        _MADE[key] = made
    return _MADE[key]


def _fitted(named: Named, arguments: dict[str, Any], made: Template, shapes: Mapping[str, Shape]) -> Template:
    """The network at the channels and the image size of `shapes`; what was found is added to `arguments`."""
    shapes = dict(shapes)
    if not made.misfits(shapes):
        return made
    if "global_pool" not in arguments and "fc_norm.weight" in shapes and "norm.weight" not in shapes:
        made = _tried(named.arch, arguments, {"global_pool": "avg"}, made)
    channels = _channels_of(named.arch, arguments, made, shapes)
    if channels is not None:
        made = _tried(named.arch, arguments, {"in_chans": channels}, made)
    if made.misfits(shapes) and "img_size" not in arguments:
        if named.image_size is not None:
            sized = _attempt(named.arch, {**arguments, "img_size": tuple(named.image_size.value)})
            if sized is not None and not sized.misfits(shapes):
                return _tried(named.arch, arguments, {"img_size": tuple(named.image_size.value)}, made)
        side = _side(named.arch, arguments, made, shapes)
        if side is not None:
            made = _tried(named.arch, arguments, {"img_size": side}, made)
    odd = made.misfits(shapes)
    if odd:
        raise NotThisNetwork(_misfit(named, made, odd, shapes))
    return made


def _misfit(named: Named, made: Template, odd: list[str], shapes: Mapping[str, Shape]) -> str:
    lacking = [name for name in odd if name not in shapes]
    if lacking:
        return (
            f"as {named.spelled}, {len(lacking)} of {len(made.required)} backbone tensors missing "
            f"({', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''})"
        )
    advice, others = "", [name for name in odd if not _is_position_table(name)]
    if not others:
        advice = "; if its images have another size or shape, say --arch-option 'img_size=(HEIGHT, WIDTH)'"
    shown = (others or odd)[0]  # a position table may differ because something else does, such as the patch
    count = f"{len(odd)} tensors have other shapes" if len(odd) > 1 else "1 tensor has another shape"
    found, expected = list(shapes[shown]), list(made.tensors[shown])
    return f"as {named.spelled}, {count}, such as {shown}: {found} instead of {expected}{advice}"


def _is_position_table(name: str) -> bool:
    return "pos" in name or "bias_table" in name or "relative" in name


def _attempt(arch: str, arguments: Mapping[str, Any]) -> Template | None:
    try:
        return _template(arch, arguments)
    except NotThisNetwork:
        return None


def _tried(arch: str, arguments: dict[str, Any], more: dict[str, Any], otherwise: Template) -> Template:
    made = _attempt(arch, {**arguments, **more})
    if made is None:
        return otherwise
    arguments.update(more)
    return made


def _channels_of(
    arch: str, arguments: Mapping[str, Any], made: Template, shapes: Mapping[str, Shape]
) -> int | None:
    """Channels of the images, from the tensor that grows with them; None if they are those of `made`."""
    if "in_chans" in arguments:
        return None
    other = _attempt(arch, {**arguments, "in_chans": 4})
    for name, shape in made.tensors.items() if other is not None else ():
        assert other is not None
        wider, found = other.tensors.get(name, shape), shapes.get(name, shape)
        if wider == shape or len(found) != len(shape):
            continue
        axis = next(axis for axis in range(len(shape)) if wider[axis] != shape[axis])
        more, rest = divmod(found[axis] - shape[axis], wider[axis] - shape[axis])
        return 3 + more if more and not rest and 0 < 3 + more <= options.LARGEST else None
    return None


def _side(arch: str, arguments: Mapping[str, Any], made: Template, shapes: Mapping[str, Shape]) -> int | None:
    """Side of the square images whose tables have the shapes of the file's, by halving; None if none has."""
    names = [name for name in made.misfits(dict(shapes)) if name in shapes]
    wanted = sum(math.prod(shapes[name]) for name in names)
    info = list(getattr(made.module, "feature_info", None) or [])
    step = info[-1].get("reduction", 32) if info and isinstance(info[-1], dict) else 32
    low, high = 1, options.LARGEST_SIDE // step
    while low <= high and names:
        middle = (low + high) // 2
        tried = _attempt(arch, {**arguments, "img_size": middle * step})
        if tried is None:
            return None
        count = sum(math.prod(tried.tensors.get(name, ())) for name in names)
        if count == wanted:
            return None if tried.misfits(dict(shapes)) else middle * step
        low, high = (middle + 1, high) if count < wanted else (low, middle - 1)
    return None


# What it does


def _at_size(
    named: Named, arguments: dict[str, Any], made: Template, shapes: Mapping[str, Shape], channels: int
) -> tuple[Template, Reading, tuple[int, int], tuple[str, bool]]:
    """The network at the image size that is asked for, where its class allows it; else at its own."""
    own, source = _own_size(named, arguments, made.module)
    stated = named.image_size
    if stated is not None and tuple(stated.value) != own:
        size = (int(stated.value[0]), int(stated.value[1]))
        sized = None if "img_size" in arguments else _attempt(named.arch, {**arguments, "img_size": size})
        if sized is not None and not sized.misfits(dict(shapes)):
            try:
                found = reading(sized, channels, size, by_layer=named.by_layer)
            except NotThisNetwork:
                pass
            else:
                arguments["img_size"] = size
                return sized, found, size, (stated.source, False)
        try:
            return made, reading(made, channels, size, by_layer=named.by_layer), size, (stated.source, False)
        except NotThisNetwork as error:
            if stated.source.startswith("--"):  # asked for by the user, so never measured at another size
                raise FeatureError(
                    f"{stated.source}: {named.spelled} with these tensors: {str(error).rstrip('.')}; leave "
                    f"it out for the network's own {own[0]} x {own[1]}"
                ) from error
    return made, reading(made, channels, own, by_layer=named.by_layer), own, source


def _own_size(
    named: Named, arguments: Mapping[str, Any], module: Any
) -> tuple[tuple[int, int], tuple[str, bool]]:
    """Image size of the network as it is built, and where it comes from."""
    if "img_size" in arguments:
        asked = named.arguments.get("img_size")
        where = (
            "the size its position tables are made for"
            if asked is None
            else f"img_size beside {named.source}"
        )
        return _pair(arguments["img_size"]), (where, False)
    size = module.pretrained_cfg.get("input_size")
    where = f"timm's configuration of {named.arch}"
    if isinstance(size, (list, tuple)) and len(size) == 3:
        return (int(size[1]), int(size[2])), (where, named.source == "--arch")
    return (IMAGE_SIZE, IMAGE_SIZE), (where, True)


def _pair(value: Any) -> tuple[int, int]:
    sides: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
    return int(sides[0]), int(sides[-1])


def _channels(made: Template, arguments: Mapping[str, Any]) -> int:
    return int(arguments.get("in_chans", made.module.pretrained_cfg.get("input_size", (3,))[0]))


def _any_size(made: Template, channels: int, size: tuple[int, int], read: Reading) -> bool:
    """Whether images of another size are taken: twice as high and wide."""
    try:
        bigger = (2 * size[0], 2 * size[1])
        return reading(made, channels, bigger, by_layer=True).kind == read.kind
    except NotThisNetwork:
        return False


def _heads(module: Any) -> int:
    blocks = getattr(module, "blocks", None)
    try:
        return int(getattr(getattr(blocks[0], "attn", None), "num_heads", 0)) if blocks else 0
    except (TypeError, KeyError, IndexError, ValueError):
        return 0


def _unseen(module: Any, heads: int, source: str) -> Iterator[Fact]:
    """Properties that the name stands for and no tensor shows, read off the module."""
    if heads:
        yield Fact("heads", str(heads), source)
    kinds: dict[str, None] = {}
    epsilons: dict[str, None] = {}
    dilations: dict[str, None] = {}
    for part in module.modules():
        if type(part).__module__.startswith(("torch.nn.modules.activation", "timm.layers.activations")):
            kinds[type(part).__name__] = None
        if isinstance(epsilon := getattr(part, "eps", None), float):
            epsilons[f"{epsilon:g}"] = None
        dilation = getattr(part, "dilation", 1)
        if isinstance(dilation, tuple) and max(dilation) > 1:
            dilations[" x ".join(map(str, dilation))] = None
    for name, found in (("activation", kinds), ("norm epsilon", epsilons), ("dilation", dilations)):
        if found:
            yield Fact(name, ", ".join(found), source)


def _check_heads(named: Named, module: Any, hints: Hints) -> None:
    """Refuse a name whose heads contradict the training code's: it would load, and give wrong features."""
    width = getattr(module, "embed_dim", None)
    heads, expected = _heads(module), hints.heads_by_width.get(width) if isinstance(width, int) else None
    told = hints.num_heads is not None or "num_heads" in named.arguments
    if not told and heads and expected and heads != expected:
        raise AmbiguousArchitecture(
            f"{named.arch} has {heads} attention heads ({named.source}), {hints.heads_origin} have "
            f"{expected} at that width. Candidates: {expected}, {heads}. Pass --num-heads N"
        )


def _defaults(named: Named, module: Any, channels: int) -> dict[str, Stated]:
    """How timm prepares images for a network of this name, where nothing in or beside the file says it."""
    source, assumed = f"timm's configuration of {named.arch}", not named.trained_by_timm
    found: dict[str, Stated] = {}
    for name in ("mean", "std", "interpolation", "crop_pct", "crop_mode"):
        value = module.pretrained_cfg.get(name)
        if _usable(name, value, channels):
            numbers = name in ("mean", "std")
            value = tuple(float(number) for number in value) if numbers else value
            found[name] = Stated(value, source, assumed=assumed)
    return found


def _usable(name: str, value: Any, channels: int) -> bool:
    if name in ("mean", "std"):
        least = -_MAX_STATISTIC if name == "mean" else 0
        return (
            isinstance(value, (list, tuple))
            and len(value) in (1, channels)
            and all(isinstance(each, (int, float)) and abs(each) <= _MAX_STATISTIC for each in value)
            and min(value) > least
        )
    if name == "crop_pct":
        return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1
    return value in INTERPOLATIONS if name == "interpolation" else isinstance(value, str)
