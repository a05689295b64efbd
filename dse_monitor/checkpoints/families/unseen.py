"""What families say alike of properties that tensors do not show: activation, epsilon, image size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dse_monitor.checkpoints.families.network import IMAGE_SIZE, Hints, NotThisNetwork
from dse_monitor.facts import Fact

# By the names that recognition/sources/values gives them.
ACTIVATIONS = {
    "gelu": "GELU",
    "gelu_tanh": "GELU approximated with tanh",
    "quick_gelu": "quick-GELU",
    "relu": "ReLU",
    "silu": "SiLU",
}


@dataclass(frozen=True)
class Unseen:
    """A property as it is used, and what is said of it."""

    value: Any
    fact: Fact


def activation(
    hints: Hints, usual: str, evidence: str, built: tuple[str, ...] = tuple(ACTIVATIONS)
) -> Unseen:
    """The function between a network's layers, by its name in ACTIVATIONS.

    Args:
        hints: what is known.
        usual: what is taken where nobody states it.
        evidence: on what evidence.
        built: those that can be built.

    Raises:
        NotThisNetwork: another is stated: it would load without complaint and yield wrong features.
    """
    stated = hints.say("activation")
    if stated is None:
        return Unseen(usual, hints.fact("activation", ACTIVATIONS[usual], evidence))
    if stated.value not in built:
        words = ", ".join(ACTIVATIONS[name] for name in built)
        raise NotThisNetwork(
            f"{stated.source} asks for the activation {stated.value!r}, and {words} can be built here"
        )
    fact = Fact("activation", ACTIVATIONS[stated.value], stated.source, usual=stated.value == usual)
    return Unseen(stated.value, fact)


def layer(name: str) -> Any:
    """The module class of an activation."""
    from timm.layers.create_act import get_act_layer

    return get_act_layer(name)


def norm_epsilon(hints: Hints, usual: float, evidence: str) -> Unseen:
    """Epsilon of the LayerNorms.

    Args:
        hints: what is known.
        usual: what is taken where neither somebody states it nor the tensors' names tell the library.
        evidence: on what evidence.
    """
    stated = hints.say("norm_eps")
    if stated is not None:
        alike = stated.read_before or stated.value == (hints.norm_eps or usual)
        return Unseen(stated.value, Fact("norm epsilon", f"{stated.value:g}", stated.source, usual=alike))
    if hints.norm_eps:
        evidence = "the default of the library that names its tensors so"
    value = hints.norm_eps or usual
    return Unseen(value, hints.fact("norm epsilon", f"{value:g}", evidence))


def free_size(hints: Hints, usual: int = IMAGE_SIZE) -> Unseen:
    """Height and width of the images for a network that takes any size."""
    stated = hints.say("image_size")
    if stated is not None:
        return Unseen(stated.value, Fact("image size", _pixels(stated.value), stated.source))
    size = (usual, usual)
    return Unseen(
        size, Fact("image size", _pixels(size), "it takes any; as ImageNet recipes evaluate", assumed=True)
    )


def bands(channels: int) -> str:
    """Channels as the end of a network's description; nothing for three."""
    return "" if channels == 3 else f", {channels} channel{'s' * (channels > 1)}"


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} px"
