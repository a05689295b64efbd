"""Which network a checkpoint or a file beside it names, and with which arguments. No torch, no timm.

Some records are about the very network whose weights lie beside them: the arguments of timm's own training,
and the config.json of timm on the Hugging Face hub. Others merely hold a name that timm may know by chance;
they count if every tensor fits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints.families.network import NotThisNetwork, Stated
from dse_monitor.checkpoints.named import options
from dse_monitor.checkpoints.named.timm_networks import Named
from dse_monitor.checkpoints.reading.contents import attributes

if TYPE_CHECKING:
    from dse_monitor.checkpoints.archive import Archive

_TIMM_TRAINING = frozenset(("epoch", "arch", "state_dict", "version"))
_PLACES = ("hyper_parameters", "args", "config", "cfg", "opt", "model_args", "model_config")
_NAMES = ("model", "arch", "model_name", "backbone", "encoder", "architecture", "arch_name", "encoder_name",
          "backbone_name", "timm_model", "name")  # fmt: skip
# Names that torchvision and everybody else uses too: what they mean is read from the shapes.
_EVERYBODYS = re.compile(r"(wide_)?resne(x)?t\d+(_\d+x\d+d|_\d)?|vgg\d+(_bn)?|densenet\d+|inception_v3")


@dataclass(frozen=True)
class Record:
    """A network that a file names.

    Attributes:
        named: the network.
        binding: whether the record is about these very weights, so that a contradiction is refused.
    """

    named: Named
    binding: bool


def record(archive: Archive) -> Record | None:
    """The network that the file, or config.json beside it, names; None if nothing does.

    Raises:
        NotThisNetwork: it is named with arguments beyond any network that exists.
    """
    tree = archive.tree if isinstance(archive.tree, Mapping) else {}
    if _TIMM_TRAINING <= tree.keys() and isinstance(tree["arch"], str):
        return _of_training(tree["arch"], attributes(tree.get("args")))
    if isinstance(archive.config.get("architecture"), str):
        return _of_hub(archive.config)
    for place, values in _groups(tree):
        for field in _NAMES:
            arch = values.get(field)
            if isinstance(arch, str) and _like_timms(arch):
                given = attributes(values.get("model_kwargs")) or attributes(values.get("model_args"))
                try:
                    arguments = options.recorded(given, f"{place}.model_kwargs")
                except NotThisNetwork:
                    arguments = {}
                return Record(
                    Named(
                        arch=arch.removeprefix("timm/"),
                        source=f"{field} in {place} of the file",
                        arguments=arguments,
                    ),
                    binding=False,
                )
    return None


def asked(arch: str, arch_options: tuple[str, ...], size: Stated | None, archive: Archive) -> Named:
    """The network that the user names; what the file says of the same name fills in the rest.

    Raises:
        NotThisNetwork: an option that is not taken.
    """
    given = options.parsed(arch_options)
    try:
        known = record(archive)
    except NotThisNetwork:
        known = None
    same = known is not None and known.binding and known.named.arch == arch
    arguments = {**known.named.arguments, **given} if known is not None and same else given
    return Named(
        arch=arch,
        source="--arch",
        arguments=arguments,
        image_size=size or (known.named.image_size if known is not None and same else None),
        trained_by_timm=known is not None and same and known.named.trained_by_timm,
    )


def _of_training(arch: str, args: Mapping[str, Any]) -> Record:
    """What timm's CheckpointSaver writes; without `args`, the name of a class and not of a model."""
    model = args.get("model")
    model = model if isinstance(model, str) else ""
    arguments = options.recorded(attributes(args.get("model_kwargs")), "args.model_kwargs")
    if isinstance(args.get("gp"), str):
        arguments.setdefault("global_pool", args["gp"])
    if isinstance(args.get("bn_eps"), float):
        arguments.setdefault("bn_eps", args["bn_eps"])
    size, where, channels = _input(args)
    if channels is not None:
        arguments.setdefault("in_chans", channels)
    options.bounded({"img_size": size, **arguments}, "args.")
    return Record(
        Named(
            arch=model or arch,
            source="arch in the file",
            arguments=arguments,
            image_size=None if size is None else Stated(size, f"args.{where} in the file"),
            trained_by_timm=True,
        ),
        binding=bool(model),
    )


def _of_hub(config: Mapping[str, Any]) -> Record:
    """config.json as timm writes it for the hub."""
    own = attributes(config.get("pretrained_cfg")) or attributes(config)
    arguments = options.recorded(attributes(config.get("model_args")), "model_args of config.json")
    pool = config.get("global_pool")
    if isinstance(pool, str) and len(pool) <= options.LONGEST_TEXT:
        arguments.setdefault("global_pool", pool)
    size, channels = own.get("input_size"), None
    shape = None
    if isinstance(size, (list, tuple)) and len(size) == 3 and all(isinstance(side, int) for side in size):
        channels, *sides = size
        shape = Stated((sides[0], sides[1]), "input_size in config.json")
        options.bounded({"input_size": sides}, "config.json ")
    if channels not in (None, 3):
        arguments.setdefault("in_chans", channels)
    options.bounded(arguments, "model_args of config.json ")
    return Record(
        Named(
            arch=str(config["architecture"]),
            source="architecture in config.json",
            arguments=arguments,
            image_size=shape,
            trained_by_timm=True,
        ),
        binding=True,
    )


def _input(args: Mapping[str, Any]) -> tuple[tuple[int, int] | None, str, int | None]:
    """Image size (height, width) of timm's arguments, which of them gives it, and channels if not three."""
    size = args.get("input_size")
    if isinstance(size, (list, tuple)) and len(size) == 3 and all(isinstance(side, int) for side in size):
        return (size[1], size[2]), "input_size", None if size[0] == 3 else size[0]
    channels = next((args[key] for key in ("in_chans", "chans") if isinstance(args.get(key), int)), None)
    side = args.get("img_size")
    shape = (side, side) if isinstance(side, int) and not isinstance(side, bool) and side > 0 else None
    return shape, "img_size", None if channels == 3 else channels


def _groups(tree: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Groups of settings in the file with their names, two levels deep."""
    for place in _PLACES:
        values = attributes(tree.get(place))
        yield place, values
        for key, value in list(values.items())[: options.LONGEST_LIST]:
            yield f"{place}.{key}", attributes(value)


def _like_timms(name: str) -> bool:
    """Whether a text may be a name of timm's that says more than everybody's do."""
    plain = name.removeprefix("timm/")
    fits = re.fullmatch(r"[a-z][a-z0-9_]{4,80}(\.[a-z0-9_]{1,60})?", plain) is not None
    return fits and any(letter.isdigit() for letter in plain) and not _EVERYBODYS.fullmatch(plain)


def tells_size(arch: str) -> bool:
    """Whether a name ends as those of timm's transformers do, with the side of its images."""
    return re.search(r"_\d{3}(\.|$)", arch) is not None
