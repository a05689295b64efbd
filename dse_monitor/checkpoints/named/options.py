"""Arguments a network is built with: what the user writes, and what may be taken from a file.

A file's arguments are anybody's: only plain values are taken, within bounds that keep a network from being
built for hours, and none that fetches or loads anything.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dse_monitor.checkpoints.families.network import NotThisNetwork

# Arguments of timm.create_model that fetch or load something, or return something other than the network.
FORBIDDEN = frozenset(
    (
        "cache_dir", "checkpoint_path", "exportable", "feature_cfg", "features_only", "no_jit", "out_indices",
        "pretrained", "scriptable",
    )
)  # fmt: skip
# Arguments that change nothing an evaluated network computes, or only its head.
WITHOUT_EFFECT = frozenset(
    (
        "attn_drop_rate", "bn_momentum", "drop", "drop_block_rate", "drop_path_rate", "drop_rate",
        "mlp_dropout", "num_classes", "patch_drop_rate", "pos_drop_rate", "proj_drop_rate", "weight_init",
    )
)  # fmt: skip

# Bounds of a file's arguments; ours. The largest published vision transformer has 6144 wide blocks, 56 deep.
LARGEST = 16384
LARGEST_SIDE = 4096  # px
MOST_LAYERS = 512
LONGEST_TEXT = 100
LONGEST_LIST = 64
DEEPEST = 4
_PRINTED = 1e300  # whole numbers beyond a float cannot be formatted as one

_REPEATS = ("depth", "layers", "blocks", "stages", "num_stacks")
_SIDES = ("img_size", "image_size", "input_size")


def parsed(options: Iterable[str]) -> dict[str, Any]:
    """``key=value`` each: values are Python literals (``6``, ``(2, 2)``, ``True``), else the text itself.

    Raises:
        NotThisNetwork: an argument that is given twice, or that would fetch or load something.
    """
    found: dict[str, Any] = {}
    for option in options:
        key, _, text = option.partition("=")
        key = key.strip().replace("-", "_")
        if key in found:
            raise NotThisNetwork(f"--arch-option {key} is given twice")
        if key in FORBIDDEN or key.startswith("pretrained"):
            raise NotThisNetwork(f"--arch-option {key} is not taken: nothing is fetched, loaded or replaced")
        try:
            found[key] = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            found[key] = text.strip()
    bounded(found, "--arch-option ")
    return found


def recorded(arguments: Mapping[str, Any], place: str) -> dict[str, Any]:
    """What a file's arguments say about the network: plain values alone, without those of no effect.

    Raises:
        NotThisNetwork: a value beyond the bounds.
    """
    found = {
        key: value
        for key, value in arguments.items()
        if isinstance(key, str)
        and key.isidentifier()
        and value is not None
        and key not in FORBIDDEN | WITHOUT_EFFECT
        and not key.startswith("pretrained")
    }
    odd = [key for key, value in found.items() if not _plain(value, DEEPEST)]
    if odd:
        raise NotThisNetwork(f"{place}.{odd[0]} is no plain value, so the network cannot be built from it")
    bounded(found, f"{place}.")
    return found


def bounded(arguments: Mapping[str, Any], place: str = "") -> None:
    """Refuse numbers beyond any network that exists, before anything of that size is made.

    Raises:
        NotThisNetwork: names the first of them.
    """
    for key, value in arguments.items():
        most = LARGEST
        if any(part in key for part in _SIDES):
            most = LARGEST_SIDE
        elif any(part in key for part in _REPEATS):
            most = MOST_LAYERS
        numbers = list(_numbers(value, DEEPEST))
        if most == MOST_LAYERS and len(numbers) > 1:
            numbers.append(sum(map(abs, numbers)))  # of all stages together
        for number in numbers:
            if not abs(number) <= most:  # so that NaN is refused too
                said = f"{number:g}" if abs(number) < _PRINTED or number != number else "of many digits"
                raise NotThisNetwork(f"{place}{key} is {said}, beyond the {most} that is built at most")
        for inner in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(inner, Mapping):
                bounded(inner, f"{place}{key}.")


def unexpected(error: TypeError, makers: Iterable[Callable[..., Any]]) -> str:
    """The error in one line; of an argument that is not known, the known ones that are spelled like it."""
    text = one_line(error)
    _, found, rest = text.partition("unexpected keyword argument ")
    if not found:
        return text
    wrong = rest.strip("'\"").split("'")[0]
    known = [name for maker in makers for name in inspect.signature(maker).parameters if name != "self"]
    near = difflib.get_close_matches(wrong, dict.fromkeys(known), n=2)
    return f"it takes no argument {wrong!r}" + (f"; did you mean {' or '.join(near)}?" if near else "")


def one_line(error: BaseException) -> str:
    """The first line of an exception's text, with its class where the text alone says little."""
    text = str(error).strip()
    first = text.splitlines()[0][:200] if text else ""
    if isinstance(error, (TypeError, ValueError, AssertionError, NotThisNetwork)) and len(first) > 20:
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def said(arguments: Mapping[str, Any]) -> str:
    """Arguments as they would be written: ``depth=6, img_size=64``."""
    return ", ".join(f"{key}={value}" for key, value in arguments.items())


def _plain(value: Any, depth: int) -> bool:
    if isinstance(value, str):
        return len(value) <= LONGEST_TEXT
    if value is None or isinstance(value, (bool, int, float)):
        return True
    if depth == 0 or not isinstance(value, (list, tuple, dict)) or len(value) > LONGEST_LIST:
        return False
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(item, depth - 1) for key, item in value.items())
    return all(_plain(item, depth - 1) for item in value)


def _numbers(value: Any, depth: int) -> Iterable[float]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
    elif isinstance(value, (list, tuple)) and depth:
        for item in value:
            yield from _numbers(item, depth - 1)
