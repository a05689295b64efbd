"""A module that the user's function built: what is in it, what it returns, and what would make it unusable.

Shapes: B images, C channels, H x W pixels, N tokens per image, D feature width.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints.families.network import IMAGE_SIZE
from dse_monitor.checkpoints.families.statedicts import Shape
from dse_monitor.checkpoints.network_code.running import Loaded, running
from dse_monitor.errors import FeatureError, NetworkError
from dse_monitor.own_network import OwnNetwork
from dse_monitor.tokens import Tokens, from_map

if TYPE_CHECKING:
    from torch import Tensor, nn

# What to return where it is not known how a network is used; docs/own_networks.md has it in context.
ADVICE = "return OwnNetwork(module=net, tokens=lambda net, images: ...) with the patch tokens [B, N, D]"
_TOLERANCE = 0.25  # of the tokens' spread; rounding in half precision stays far below, dropout far above
LOOKED_AT = 2  # images of the forward pass that shows what comes out; with one, a lost batch axis is not seen


@dataclass(frozen=True)
class Made:
    """A module fresh from the user's function.

    Attributes:
        own: what the function returned; a bare module as an `OwnNetwork` without further fields.
        shapes: names and shapes of its state dict.
        buffers: those of them that are no parameters.
        needed: those that a file must hold: all but what the module computes by itself.
        channels: C.
        image_size: height and width, px.
    """

    own: OwnNetwork
    shapes: Mapping[str, Shape]
    buffers: frozenset[str]
    needed: frozenset[str]
    channels: int
    image_size: tuple[int, int]


@dataclass(frozen=True)
class Output:
    """What a network returns for images of its size.

    Attributes:
        grid: rows and columns of the tokens.
        width: D.
        assumed: whether the grid is a square because N is one, and nothing else says so.
    """

    grid: tuple[int, int]
    width: int
    assumed: bool


_GIVEN_OUT: list[Any] = []  # weak references to modules that encoders have, so that none is given twice
_OUTPUTS: dict[object, Output] = {}  # what was seen of a network, which need not be seen twice
_REPEATED: set[object] = set()  # networks whose tokens were the same when asked for again


def made(code: Loaded, image_size: tuple[int, int] | None = None) -> Made:
    """The module that the user's function builds, in evaluation mode on the CPU.

    Args:
        code: the function.
        image_size: what the user asks for in place of the network's own; None if nothing.

    Raises:
        NetworkError: it fails, or what it returns cannot be used; says what to return.
    """
    from torch import nn

    label = f"--network {code.code.label}"
    given = code.call()
    if not isinstance(given, (OwnNetwork, nn.Module)):
        found = "nothing" if given is None else f"a {type(given).__name__}"
        raise NetworkError(f"{label} returned {found}, expected a torch module or an OwnNetwork: {ADVICE}")
    own = given if isinstance(given, OwnNetwork) else OwnNetwork(module=given)
    if not isinstance(own.module, nn.Module):
        raise NetworkError(f"{label}: module is a {type(own.module).__name__}, expected a torch module")
    if any(reference() is own.module for reference in _GIVEN_OUT):
        raise NetworkError(
            f"{label} returned a module that an earlier call returned; construct it inside the function, as "
            "each checkpoint's weights go into a module of their own"
        )
    with running(code.code, "the module"):
        own.module.float().cpu().eval()
        state = own.module.state_dict()
        parameters = {name for name, _ in own.module.named_parameters(remove_duplicate=False)}
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if own.module.eval() is not own.module or any(part.training for part in own.module.modules()):
        raise NetworkError(
            f"{label}: its train(mode) does not put every part into evaluation mode, or does not return the "
            "module"
        )
    if not shapes:
        raise NetworkError(
            f"{label}: the module has no tensors, so nothing of a checkpoint would be measured"
        )
    buffers = frozenset(name for name, _ in own.module.named_buffers(remove_duplicate=False)) - parameters
    statistics = {
        f"{path}.{name}".lstrip(".")
        for path, part in own.module.named_modules()
        if isinstance(part, nn.modules.batchnorm._NormBase)
        for name in ("running_mean", "running_var")
    }
    return Made(
        own=own,
        shapes=shapes,
        buffers=buffers & shapes.keys(),
        needed=frozenset(name for name in shapes if name not in buffers or name in statistics),
        channels=own.channels or _first_channels(own.module, label),
        image_size=_size(own, image_size, label),
    )


def _size(own: OwnNetwork, asked: tuple[int, int] | None, label: str) -> tuple[int, int]:
    size = own.image_size if isinstance(own.image_size, tuple) else (IMAGE_SIZE, IMAGE_SIZE)
    if asked is None or asked == size:
        return size
    if not own.any_size:
        raise NetworkError(
            f"{label} is for images of {size[0]} x {size[1]} px: leave --image-size out, or return "
            "any_size=True if it takes others"
        )
    return asked


def _first_channels(module: nn.Module, label: str) -> int:
    from torch import nn

    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            return part.in_channels
    raise NetworkError(
        f"{label}: it has no convolution that shows how many channels images have; return channels="
    )


def give_out(module: nn.Module) -> nn.Module:
    """Note that an encoder has this module now."""
    import weakref

    _GIVEN_OUT[:] = [reference for reference in _GIVEN_OUT if reference() is not None]
    _GIVEN_OUT.append(weakref.ref(module))
    return module


def use(code: Loaded, own: OwnNetwork, module: Any, images: Tensor, layer: int | None) -> Tokens:
    """The tokens of images, as the user's code says.

    Raises:
        FeatureError: his code fails on these images, or returns no tokens.
    """
    try:
        with running(code.code, "tokens"):
            returned = _call(own, module, images, layer)
    except NetworkError as error:  # of one checkpoint, perhaps: the others go on
        raise FeatureError(str(error)) from None
    found = _as_tokens(returned)
    if isinstance(found, str):
        raise FeatureError(f"--network {code.code.label} {found}: {ADVICE}")
    if (code.identity, layer) not in _REPEATED:
        _check_repeats(code, own, module, images[:LOOKED_AT], layer)
        _REPEATED.add((code.identity, layer))
    return found


def _check_repeats(code: Loaded, own: OwnNetwork, module: Any, images: Tensor, layer: int | None) -> None:
    """Refuse tokens that are not the same at each call, or that depend on the other images of the batch.

    Raises:
        NetworkError: they are random, or of the whole batch.
    """
    with running(code.code, "tokens"):
        first, second, alone = (
            _as_tokens(_call(own, module, part, layer)) for part in (images, images, images[:1])
        )
    if isinstance(first, str) or isinstance(second, str):
        raise FeatureError(f"--network {code.code.label} returns tokens at some calls and not at others")
    spread = float(first.dense.float().std()) if first.dense.numel() > 1 else 0.0
    problem = ""
    if _apart(first, second) > _TOLERANCE * spread:
        problem = "other tokens each time it is called, as dropout does"
    elif isinstance(alone, str) or _apart(Tokens(first.dense[:1]), alone) > _TOLERANCE * spread:
        problem = "tokens of an image that depend on the others of the batch"
    if problem:
        raise NetworkError(
            f"--network {code.code.label} gives {problem}; use what evaluation uses, with nothing random in "
            "it and each image for itself"
        )


def _apart(one: Tokens, other: Tokens) -> float:
    if one.dense.shape != other.dense.shape:
        return math.inf
    return float((one.dense.float() - other.dense.float()).abs().max()) if one.dense.numel() else 0.0


def _call(own: OwnNetwork, module: Any, images: Tensor, layer: int | None) -> Any:
    if own.tokens is None:
        return getattr(module, "forward_features", module)(images)
    return own.tokens(module, images, layer) if own.layers else own.tokens(module, images)


def _as_tokens(returned: Any) -> Tokens | str:
    """What a network returned, as tokens, or in words what it is instead."""
    import torch

    if isinstance(returned, Tokens):
        dense = returned.dense
        good = isinstance(dense, torch.Tensor) and dense.ndim == 3 and dense.is_floating_point()
        return returned if good else "returned Tokens whose dense ones are no floating-point [B, N, D]"
    if not isinstance(returned, torch.Tensor):
        return f"returned a {type(returned).__name__}, not a tensor"
    if not returned.is_floating_point() or returned.ndim not in (3, 4):
        return f"returned {returned.dtype} {list(returned.shape)}"
    return Tokens(returned) if returned.ndim == 3 else from_map(returned)


# What comes out --------------------------------------------------------------------------------------------


def output_of(
    code: Loaded, one: Made, held: frozenset[str], again: Callable[[], Made]
) -> tuple[Output, Made]:
    """What a network returns, from a forward pass, and the module to use: a fresh one where `one` was spent.

    Looking at it twice is spared: a watcher reads many checkpoints of one network.

    Args:
        code: the user's function.
        one: what it built.
        held: names of the tensors that the file holds.
        again: calls it again.

    Raises:
        NetworkError: the network cannot be run, or returns no tokens in a grid; two calls of the function
            build different networks; or something in it is random and does not come from the file.
    """
    key = (code.identity, tuple(sorted(one.shapes.items())), one.channels, one.image_size, one.own.grid)
    if key in _OUTPUTS:
        return _OUTPUTS[key], one
    label = f"--network {code.code.label}"
    fresh = again()
    if fresh.own.module is one.own.module:
        raise NetworkError(f"{label} returns the same module at each call; construct it inside the function")
    if fresh.shapes != one.shapes:
        odd = sorted(dict(fresh.shapes.items() ^ one.shapes.items()))
        raise NetworkError(f"{label} builds another network at each call; {odd[0]} differs")
    if name := _random(one, fresh, held):
        raise NetworkError(
            f"{label}: {name} differs between two calls and is not in the checkpoint, so it would be random; "
            "make it a parameter or buffer of the network that was trained, or compute it"
        )
    strays: list[str] = []
    try:  # nothing is computed on the device meta
        with _outsiders(one.own.module, strays):
            one.own.module.to("meta")
            returned = _forward(code, one, "meta")
    except (
        Exception
    ):  # not every operation is possible there, and tensors of the module's own may be elsewhere
        spent = again()
        strays.clear()
        with _outsiders(spent.own.module, strays):
            returned = _forward(code, spent, "cpu")
    if strays:
        raise NetworkError(
            f"{label}: tokens runs a {strays[0]} that is no part of module, so its weights would not come "
            "from the checkpoint; return a module that holds it"
        )
    _OUTPUTS[key] = _output(code, one, returned)
    return _OUTPUTS[key], fresh


def _forward(code: Loaded, one: Made, device: str) -> Any:
    import torch

    images = torch.zeros(LOOKED_AT, one.channels, *one.image_size, device=device)
    try:
        with torch.inference_mode(), running(code.code, "tokens"):
            return _call(one.own, one.own.module, images, None)
    except NetworkError as error:
        stated = "channels=" if one.own.channels else "its first convolution"
        size = "image_size=" if one.own.image_size else f"{IMAGE_SIZE} px unless image_size= says otherwise"
        raise NetworkError(f"{error}. It was given images {list(images.shape)} ({stated}, {size})") from error


def _output(code: Loaded, one: Made, returned: Any) -> Output:
    import torch

    label, own = f"--network {code.code.label}", one.own
    found = _as_tokens(returned)
    if isinstance(found, str):
        raise NetworkError(f"{label} {found}: {ADVICE}")
    if found.dense.shape[0] != LOOKED_AT:
        raise NetworkError(
            f"{label} returned {list(found.dense.shape)} for {LOOKED_AT} images, expected "
            f"[{LOOKED_AT}, N, D]: {ADVICE}"
        )
    count, width = found.dense.shape[1:]
    side = math.isqrt(count)
    is_map = isinstance(returned, torch.Tensor) and returned.ndim == 4
    grid = own.grid or ((returned.shape[2], returned.shape[3]) if is_map else (side, side))
    if own.grid is None and not is_map and (side * side != count or one.image_size[0] != one.image_size[1]):
        beside = count - side * side
        hint = f" ({side} x {side} and {beside} more, a class token perhaps)" if 0 < beside < side else ""
        raise NetworkError(
            f"{label} returned {count} tokens{hint}, which are no square: {ADVICE}, or grid=(rows, columns)"
        )
    if math.prod(grid) != count:
        raise NetworkError(f"{label} returned {count} tokens, which are no grid of {grid[0]} x {grid[1]}")
    return Output(grid, width, own.grid is None and not is_map)


def _random(one: Made, fresh: Made, held: frozenset[str]) -> str:
    """The first tensor that two calls make differently and the file does not hold; empty if there is none."""
    import torch

    def others(made: Made) -> dict[str, Tensor]:
        module = made.own.module
        found = {name: tensor for name, tensor in module.named_buffers() if name not in held}
        for path, part in module.named_modules():
            for name, value in vars(part).items():
                if isinstance(value, torch.Tensor):
                    found[f"{path}.{name}".lstrip(".")] = value
        return found

    mine, theirs = others(one), others(fresh)
    return next((name for name in mine if name not in theirs or not _equal(mine[name], theirs[name])), "")


def _equal(mine: Tensor, theirs: Tensor) -> bool:
    import torch

    return mine.shape == theirs.shape and bool(torch.equal(torch.nan_to_num(mine), torch.nan_to_num(theirs)))


@contextlib.contextmanager
def _outsiders(module: nn.Module, found: list[str]) -> Iterator[None]:
    """Add to `found` the class of each module with weights that runs meanwhile and is no part of `module`."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    known = {id(parameter) for parameter in module.parameters()}
    parts = {id(part) for part in module.modules()}

    def look(part: nn.Module, _: Any) -> None:
        if id(part) not in parts and any(id(each) not in known for each in part.parameters(recurse=False)):
            found.append(type(part).__name__)

    handle = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


def user_of(code: Loaded, own: OwnNetwork) -> Callable[[Any, Tensor, int | None], Tokens]:
    """`use` for `Network.tokens`."""
    return partial(use, code, own)
