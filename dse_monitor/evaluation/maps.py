"""Dense tokens of a few example images as colour maps that stay comparable over a run.

A strip has three rows of tiles: features, the clusters of DSE within each image, its clusters shared by the
images of a group.

A map shows the first three principal components of the examples' tokens as red, green and blue. Principal
components of two checkpoints are not comparable: features rotate while a network learns, and components
swap and change sign. So the first checkpoint painted becomes the run's colour reference, and the components
of every other one are turned onto it by the orthogonal matrix that fits best (orthogonal Procrustes,
Schönemann 1966) over the same tokens of the same images. A rotation changes no distance between tokens: a
map that loses contrast between its regions, or all but one hue, shows features that did.

A cluster has the mean colour of its tokens. So it keeps its colour from checkpoint to checkpoint without any
matching of labels, and two clusters that look alike are close in the features too.

Shapes: E example images of h x w px and C channels, N = R * K tokens each in rows and columns, D feature
width, M = E * N.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dse_monitor import atomic
from dse_monitor.errors import OutputError

EXAMPLES = 6  # images in a strip; ours, what fits beside the charts
MEDIA_FOLDER = "media"  # below the run's output folder
ORIGINALS = "images.webp"  # the examples themselves, in MEDIA_FOLDER
TILE = 112  # px, longer side of an original in its strip
QUALITY = 90  # of the originals, which are photographs; ours

PERCENTILES = (2, 98)  # of the values of a band that become black and full; usual for multispectral images
_CONTRAST = 1.5  # slope of the colour curve: one standard deviation reaches 82 % of a channel

Scores = NDArray[np.float64]


class Examples:
    """Tokens and clusters of the first images, gathered from metric batches until there are EXAMPLES."""

    def __init__(self) -> None:
        self._tokens: list[NDArray[np.floating]] = []
        self._labels: list[list[NDArray[np.integer]]] = []

    @property
    def missing(self) -> int:
        """Images still wanted."""
        return EXAMPLES - sum(len(part) for part in self._tokens)

    def add(self, tokens: NDArray[np.floating], *labels: NDArray[np.integer]) -> None:
        """Add tokens [n, N, D] and their labels, integers [n, N], one array per clustering."""
        self._tokens.append(tokens)
        before = self._labels[-1] if self._labels else [np.array(-1)] * len(labels)
        # Equal numbers in two batches are two clusters.
        self._labels.append([own + 1 + old.max() for own, old in zip(labels, before, strict=True)])

    def tokens(self) -> NDArray[np.floating]:
        """All tokens [E, N, D]."""
        return np.concatenate(self._tokens)

    def labels(self) -> list[NDArray[np.integer]]:
        """All labels [E, N], one array per clustering."""
        return [np.concatenate(parts) for parts in zip(*self._labels, strict=True)]


def paint_tokens(
    folder: Path,
    tokens: NDArray[np.floating],
    labels: Sequence[NDArray[np.integer]] = (),
    *,
    grid: tuple[int, int],
    name: str,
    images: str,
) -> str:
    """Write the maps of one checkpoint: rows of E tiles, one pixel per token.

    The first row shows the features, the others one clustering each. The colour reference of these images is
    read from the folder, or written there by the first call. Equal tokens, labels and reference give an equal
    file.

    Args:
        folder: the run's output folder.
        tokens: [E, N, D], finite.
        labels: for each clustering the cluster of each token, integers [E, N]; equal numbers are one cluster.
        grid: rows and columns of the tokens, R and K.
        name: what tells this checkpoint from others; becomes part of the file's name.
        images: fingerprint of the images, so that no reference of other images is used.

    Returns:
        The file relative to `folder`, with forward slashes; empty when N is not R * K, which makes no map.

    Raises:
        OutputError: the folder cannot be written.
    """
    examples, count, _ = tokens.shape
    rows, columns = grid
    if rows * columns != count:
        return ""
    scores = principal_scores(tokens.reshape(examples * count, -1))
    shape = f"{rows}" if rows == columns else f"{rows}x{columns}"
    reference = folder / f"map-colours-{_plain(images)}-{examples}x{shape}.npy"
    target = folder / MEDIA_FOLDER / f"map-{_plain(name)}.png"
    try:
        (folder / MEDIA_FOLDER).mkdir(parents=True, exist_ok=True)
        known = _read_scores(reference, scores.shape)
        if known is None:
            stream = io.BytesIO()
            np.save(stream, scores)
            atomic.write_bytes(reference, stream.getvalue())
        else:
            scores = align(scores, known)
        kinds = [scores, *(mean_by_label(scores, own.reshape(-1)) for own in labels)]
        tiles = [colours(kind).reshape(examples, rows, columns, 3) for kind in kinds]
        atomic.write_bytes(
            target, _encoded(np.concatenate([np.concatenate(list(row), axis=1) for row in tiles]), "PNG")
        )
    except OSError as error:
        raise OutputError(
            f"{folder}: feature maps cannot be written ({error}); check space and rights"
        ) from error
    return target.relative_to(folder).as_posix()


def paint_images(folder: Path, pixels: NDArray[Any], preview_bands: Sequence[int] = ()) -> None:
    """Write the example images [E, h, w, C] as a strip of E tiles beside the maps, once.

    8-bit RGB and grey are shown as they are. Of anything else three bands are stretched, each from its 2nd to
    its 98th percentile over all examples: the three there are, those chosen, or, of two or more than three,
    the first three principal components of the bands' values. One band is stretched as grey.

    Args:
        folder: the run's output folder.
        pixels: uint8 or floating-point.
        preview_bands: the channels shown as red, green and blue, counted from 1; none where there are fewer.

    Raises:
        OutputError: the folder cannot be written.
    """
    tiles = previews(pixels, preview_bands)
    target = folder / MEDIA_FOLDER / ORIGINALS
    content = _encoded(np.concatenate(list(tiles), axis=1), "WEBP", quality=QUALITY)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_bytes() != content:
            atomic.write_bytes(target, content)
    except OSError as error:
        raise OutputError(
            f"{folder}: example images cannot be written ({error}); check space and rights"
        ) from error


def previews(pixels: NDArray[Any], bands: Sequence[int] = ()) -> NDArray[np.uint8]:
    """Images [E, h, w, C] as RGB of at most TILE px along the longer side; see `paint_images`."""
    _, height, width, channels = pixels.shape
    share = min(1.0, TILE / max(height, width))
    high, wide = max(1, round(height * share)), max(1, round(width * share))

    def small(plane: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(Image.fromarray(plane).resize((wide, high), Image.Resampling.BOX))

    eight = pixels.dtype == np.uint8
    if eight and channels == 3 and not bands:
        return np.stack([small(np.asarray(image)) for image in pixels])
    chosen = [band - 1 for band in bands] if bands and max(bands) <= channels else range(channels)
    kind = np.uint8 if eight else np.float32
    planes = [[small(np.ascontiguousarray(image[..., band], kind)) for band in chosen] for image in pixels]
    values = np.moveaxis(np.array(planes), 1, -1)  # [E, high, wide, bands]
    if eight and values.shape[-1] == 1:
        return np.repeat(values, 3, axis=-1)
    if values.shape[-1] not in (1, 3):
        values = principal_scores(values.reshape(-1, values.shape[-1])).reshape(*values.shape[:-1], 3)
    low, high = np.percentile(values, PERCENTILES, axis=(0, 1, 2))
    stretched = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.broadcast_to(np.round(stretched * 255), (*values.shape[:-1], 3)).astype(np.uint8)


def principal_scores(tokens: NDArray[np.floating]) -> Scores:
    """The first three principal components of M tokens [M, D]: scores [M, 3], centred.

    Scaled together so that their mean square is one: the relative spread of the three is kept, for it shows
    how many directions the features use. Zero where there is no such direction. Each sign makes the largest
    score positive.
    """
    values = tokens.astype(np.float64)
    values -= values.mean(0)
    if values.shape[1] <= values.shape[0]:
        _, vectors = np.linalg.eigh(values.T @ values)
        scores = values @ vectors[:, ::-1][:, :3]
    else:  # fewer tokens than dimensions: the small Gram matrix has the same components
        squares, vectors = np.linalg.eigh(values @ values.T)
        scores = vectors[:, ::-1][:, :3] * np.sqrt(np.maximum(squares[::-1][:3], 0))
    scores = np.pad(scores, ((0, 0), (0, 3 - scores.shape[1])))
    scores *= np.sign(scores[np.abs(scores).argmax(0), range(3)])
    size = float(np.sqrt(np.square(scores).mean()))
    return scores / size if size > 1e-9 * (1 + np.abs(tokens).max()) else np.zeros_like(scores)


def align(scores: Scores, reference: Scores) -> Scores:
    """Scores [M, 3] turned onto a reference [M, 3] by the best-fitting orthogonal matrix."""
    left, _, right = np.linalg.svd(scores.T @ reference)
    return scores @ (left @ right)


def mean_by_label(scores: Scores, labels: NDArray[np.integer]) -> Scores:
    """For each of M tokens the mean of the scores [M, 3] of its cluster, labels [M]."""
    _, cluster, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(sizes), scores.shape[1]))
    np.add.at(sums, cluster, scores)
    return (sums / sizes[:, None])[cluster]


def colours(scores: Scores) -> NDArray[np.uint8]:
    """Scores [M, 3] as RGB [M, 3]; zero is mid-grey, and no score is cut off."""
    return np.round(255 / (1 + np.exp(-_CONTRAST * scores))).astype(np.uint8)


def _read_scores(file: Path, shape: tuple[int, ...]) -> Scores | None:
    """A reference written earlier; None when there is none, or a damaged one."""
    try:
        scores = np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return scores if scores.shape == shape and np.isfinite(scores).all() else None


def _plain(name: str) -> str:
    """A name without anything that means something in a path."""
    return re.sub(r"[^\w-]+", "-", name)[-64:]


def _encoded(pixels: NDArray[np.uint8], kind: str, **options: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=kind, **options)
    return stream.getvalue()
