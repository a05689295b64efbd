"""A network and exactly the tensors it needs: none missing, none of the encoder left over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dse_monitor.checkpoints.families.network import POOLED_NORM, Hints, Network, NotThisNetwork, Piece
from dse_monitor.checkpoints.families.statedicts import Shape
from dse_monitor.checkpoints.layouts.layout import Layout
from dse_monitor.checkpoints.recognition import architecture
from dse_monitor.checkpoints.recognition.by_name import ByName
from dse_monitor.checkpoints.recognition.contents import some
from dse_monitor.checkpoints.recognition.dialects import HEADS, Found, Pieces

if TYPE_CHECKING:
    from torch import Tensor

# Tables that earlier releases of timm kept in their files and that a network computes.
_STALE = ("relative_position_index", "relative_coords_table", "attn_mask", "num_batches_tracked")


def fitted(found: Found, layout: Layout, hints: Hints, named: ByName | None) -> tuple[Network, Pieces]:
    """The network, and exactly the pieces it needs: none missing, none of the encoder left over.

    Args:
        found: the encoder's place.
        layout: the layout it is read as.
        hints: what is known beside its shapes.
        named: the network that is named; without it, the dialect's family recognises it.

    Raises:
        NotThisNetwork: see above, naming the first tensors concerned.
        AmbiguousArchitecture: from the family.
    """
    if named is None:
        pieces = backbone(found.pieces(layout.drop), layout)
        network = architecture.recognise(found.dialect.family, _shapes(pieces), hints)
    elif found in named.places:
        pieces = found.pieces(layout.drop)
        network = named.build(_shapes(pieces), hints)
        kept = backbone(pieces, layout).keys() | network.tensors.keys()
        beside = (*(f"{name}." for name in network.outside), *network.outside)
        pieces = {
            name: piece
            for name, piece in pieces.items()
            if name in network.tensors
            or (name in kept and not name.endswith(_STALE) and not name.startswith(beside))
        }
    else:
        pieces = backbone(found.pieces(layout.drop), layout)
        network = named.build(_shapes(pieces), hints)
    pieces = {**pieces, **{name: _composed(piece, pieces) for name, piece in network.renamed.items()}}
    pieces = {name: piece for name, piece in pieces.items() if not name.startswith(f"{POOLED_NORM}.")}
    wanted = dict(network.tensors)
    if named is not None:  # a head of a named model reads pooled features: it may stay as it was made
        wanted = {
            name: shape
            for name, shape in wanted.items()
            if name in pieces or name.split(".", 1)[0] not in HEADS
        }
    may_lack = {name for name in wanted if name.endswith("num_batches_tracked")} | network.computed
    missing = [name for name in wanted if name not in pieces and name not in may_lack]
    left_over = [name for name in pieces if name not in wanted]
    if missing or left_over:
        problems = []
        if missing:
            problems.append(f"{len(missing)} of {len(wanted)} backbone tensors missing ({some(missing)})")
        if left_over:
            problems.append(f"{len(left_over)} of its tensors have no place in it ({some(left_over)})")
        raise NotThisNetwork(f"as {network.description}, {' and '.join(problems)}")
    odd = [name for name in wanted if name in pieces and pieces[name].shape != wanted[name]]
    if odd:
        raise NotThisNetwork(
            f"as {network.description}, {len(odd)} tensors have other shapes, such as {odd[0]}: "
            f"{list(pieces[odd[0]].shape)} instead of {list(wanted[odd[0]])}"
        )
    return network, pieces


def _composed(piece: Piece, pieces: Pieces) -> Piece:
    """A piece made from other pieces of the network, as one made from the file's tensors."""
    parts = [pieces[name] for name in piece.sources]

    def make(tensors: list[Tensor]) -> Tensor:
        values: list[Tensor] = []
        taken = 0
        for part in parts:
            values.append(part.make(tensors[taken : taken + len(part.sources)]))
            taken += len(part.sources)
        return piece.make(values)

    return Piece(tuple(source for part in parts for source in part.sources), piece.shape, make)


def backbone(pieces: Pieces, layout: Layout) -> Pieces:
    """Without heads, decoders and what else the layout drops."""
    return {
        name: piece
        for name, piece in pieces.items()
        if name.split(".", 1)[0] not in HEADS and not (layout.drop and name.startswith(layout.drop))
    }


def _shapes(pieces: Pieces) -> dict[str, Shape]:
    return {name: piece.shape for name, piece in pieces.items()}
