"""What is known of a network beside its weights, and how surely. Standard library only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """One property of a network that changes its tokens and that its tensors do not show.

    Attributes:
        name: "heads", "activation", "stride", "image shape", "mean", ...
        value: as it is used, in words.
        source: where that is stated, or on what evidence it was assumed.
        assumed: nothing in the file or beside it, and no option, states it.
        usual: whether a reader that sees nothing but the tensors takes this value, as earlier versions did:
            then numbers of both belong together.
    """

    name: str
    value: str
    source: str
    assumed: bool = False
    usual: bool = True


def reading(arch: str, facts: Iterable[Fact]) -> str:
    """Twelve hexadecimal digits that tell one reading of a network from another; empty for the usual one.

    Args:
        arch: the network in words.
        facts: what is known of it.
    """
    unusual = sorted((fact.name, fact.value) for fact in facts if not fact.usual)
    return hashlib.sha256(repr((arch, unusual)).encode()).hexdigest()[:12] if unusual else ""
