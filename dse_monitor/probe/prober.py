"""Dense quality with labels: how well frozen tokens tell the classes of a segmentation.

This is the truth that DSE, which sees no labels, is compared with.

A token's class is the one that fills at least half of its patch; patches without such a class, or mostly
ignored ones, are left out of training and of the score. So a perfect representation reaches an mIoU of 1
whatever its patch size, and the score is about what a token knows rather than about boundaries inside it.

Images are split in halves, by image and several times over; on the first half are fitted

- a linear probe: multinomial logistic regression on standardised tokens, full batch L-BFGS, a small L2
  penalty;
- a nearest-neighbour probe: cosine similarity, votes weighted by exp(similarity / 0.07) as in DINO's k-NN
  evaluation;

and both are scored on the other half. Classes count equally, however rare: mIoU is the mean over classes of
intersection over union, accuracy the mean over classes of recall; a class absent from the held-out half is
left out. Equal arguments give equal results on one machine.

Shapes: n images, N tokens per image, D feature width, M tokens of a split, C classes.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dse_monitor.checkpoints import load_encoder
from dse_monitor.encoder import Encoder
from dse_monitor.errors import FeatureError, ImagesError, NonFiniteFeatures
from dse_monitor.evaluation import decoding, images
from dse_monitor.evaluation.evaluator import resolve_device, token_grid
from dse_monitor.evaluation.geometry import fit
from dse_monitor.evaluation.recipe import Recipe
from dse_monitor.metric.precision import full_float32
from dse_monitor.preprocessing import Preprocessing
from dse_monitor.probe.options import ProbeConfig

Progress = Callable[[str, int, int], None]  # (stage, done, total); stages: "images", "forward", "probe"

IGNORED = -1  # label of a token that belongs to no class
MAJORITY = 0.5  # share of a patch its class must fill; ours
PENALTY = 1e-4  # L2, on standardised tokens and the mean loss; ours, not tuned
ITERATIONS = 100  # of L-BFGS; ours, not tuned
TEMPERATURE = 0.07  # of the votes; Caron et al. 2021, arXiv 2104.14294, eval_knn.py
BANK = 8192  # tokens a neighbour is searched among, drawn at random from a larger training half; ours
STANDARD_FLOOR = 1e-3  # of the mean deviation; a dimension that varies less is noise and is not blown up


@dataclass(frozen=True, kw_only=True)
class Score:
    """One probe's score on held-out images: means over the splits.

    Attributes:
        miou: mean over classes of intersection over union.
        miou_std: standard deviation of `miou` over the splits; nan for one split.
        accuracy: mean over classes of recall.
        iou: intersection over union by class (value in the masks).
    """

    miou: float
    miou_std: float
    accuracy: float
    iou: dict[int, float]


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """How well one checkpoint's tokens tell the classes.

    Attributes:
        path: the checkpoint.
        epoch: epochs done, or None.
        step: steps done, or None.
        arch: the network, in words.
        content: digest of the encoder's bytes, as in `record.Source`.
        truth: twelve hexadecimal digits that are equal for equal labelled images and ways to use them.
        linear: of the linear probe.
        knn: of the nearest-neighbour probe.
        images: labelled images used, both halves.
        tokens: labelled tokens among theirs.
        classes: classes among those.
    """

    path: str
    epoch: float | None
    step: int | None
    arch: str
    content: str
    truth: str
    linear: Score
    knn: Score
    images: int
    tokens: int
    classes: int

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON types; NaN becomes None."""
        data = asdict(self)
        for score in (data["linear"], data["knn"]):
            score["miou_std"] = score["miou_std"] if score["miou_std"] == score["miou_std"] else None
        return data


class Prober:
    """Probes checkpoints, one call each, keeping images and masks between calls.

    Raises:
        DeviceError: the device asked for is not there.
        ValueError: fewer than one split or neighbour, or fewer than four images.
    """

    def __init__(self, labelled: ProbeConfig):
        if labelled.splits < 1 or labelled.neighbours < 1 or labelled.num_images < 4:
            raise ValueError(
                f"at least 1 split, 1 neighbour and 4 images are needed, got {labelled.splits}, "
                f"{labelled.neighbours} and {labelled.num_images}"
            )
        self.labelled = labelled
        self.device = resolve_device(labelled.device)
        self._pairs: dict[tuple[object, ...], tuple[NDArray[Any], NDArray[np.int32]]] = {}
        self._labels: dict[tuple[object, ...], NDArray[np.int64]] = {}
        self._truths: dict[tuple[object, ...], str] = {}

    def truth(self, how: Preprocessing, progress: Progress | None = None) -> str:
        """Fingerprint of the labelled images as a network sees them and of how they are used.

        Raises:
            ImagesError: the labelled images cannot be used.
        """
        key = _key(how)
        if key not in self._truths:
            pixels, masks = self._read(how, progress)
            used = self.labelled
            use = (used.seed, used.splits, used.neighbours, used.ignore, used.precision, pixels.shape)
            digest = hashlib.sha256(repr(use).encode())
            digest.update(pixels.tobytes())
            digest.update(masks.tobytes())
            self._truths[key] = digest.hexdigest()[:12]
        return self._truths[key]

    def __call__(self, path: Path | str, progress: Progress | None = None) -> ProbeResult:
        """Probe one checkpoint.

        Raises:
            CheckpointError, FeatureError: the checkpoint cannot be read or measured.
            NonFiniteFeatures: its weights or tokens are not finite.
            ImagesError: the labelled images cannot be used.
            DeviceError: the device is full.
        """
        labelled = self.labelled
        encoder = load_encoder(Path(path), labelled)
        if encoder.non_finite:
            raise NonFiniteFeatures(f"{path}: NaN or infinite weights in {len(encoder.non_finite)} tensors")
        if encoder.transform is not None:
            raise FeatureError(
                f"{path}: masks cannot be cropped as the transform of its network crops images, which it "
                "does not say; probe it through a function that returns no transform, where pictures do"
            )
        how = encoder.preprocessing.at(labelled.image_size)
        pixels, masks = self._read(how, progress)
        tokens = self._encode(encoder, pixels, progress)
        grid = token_grid(encoder, how.image_size, tokens.shape[1])
        key = (*_key(how), grid)
        if key not in self._labels:
            self._labels[key] = token_labels(masks, grid, labelled.ignore)
        labels = self._labels[key]
        linear, knn = score_tokens(
            tokens,
            labels,
            seed=labelled.seed,
            splits=labelled.splits,
            neighbours=labelled.neighbours,
            progress=progress,
        )
        known = labels[labels != IGNORED]
        return ProbeResult(
            path=Path(path).as_posix(),
            epoch=encoder.epoch,
            step=encoder.step,
            arch=encoder.arch,
            content=encoder.source.content,
            truth=self.truth(how),
            linear=linear,
            knn=knn,
            images=len(pixels),
            tokens=len(known),
            classes=len(np.unique(known)),
        )

    def _read(self, how: Preprocessing, progress: Progress | None) -> tuple[NDArray[Any], NDArray[np.int32]]:
        key = _key(how)
        if key not in self._pairs:
            self._pairs[key] = read_pairs(self.labelled, how, progress)
        return self._pairs[key]

    def _encode(self, encoder: Encoder, pixels: NDArray[Any], progress: Progress | None) -> Tensor:
        encoder.to(self.device)
        with full_float32():
            tokens = encoder.encode(
                pixels,
                device=self.device,
                precision=self.labelled.precision,
                micro_batch=self.labelled.micro_batch,
                progress=(lambda done, total: progress("forward", done, total)) if progress else None,
            )
        if not bool(tokens.isfinite().all()):
            raise NonFiniteFeatures(f"{encoder.source.path}: NaN or infinity among the tokens")
        return tokens


def probe(checkpoint: Path | str, images: Path | str, masks: Path | str, **options: Any) -> ProbeResult:
    """Probe one checkpoint; options are the further fields of `ProbeConfig`. For many, keep one `Prober`."""
    return Prober(ProbeConfig(images=Path(images), masks=Path(masks), **options))(checkpoint)


def score_tokens(
    tokens: Tensor,
    labels: NDArray[np.int64],
    *,
    seed: int = 0,
    splits: int = 3,
    neighbours: int = 20,
    progress: Progress | None = None,
) -> tuple[Score, Score]:
    """Scores of the linear and the nearest-neighbour probe.

    Args:
        tokens: [n, N, D] float, on the device to compute on.
        labels: [n, N] classes, `IGNORED` where there is none.
        seed: of the splits.
        splits: how many times the images are split in halves.
        neighbours: tokens that vote.
        progress: called as progress("probe", splits done, splits).

    Raises:
        ImagesError: fewer than two classes, or a half without labels.
    """
    values, compact = np.unique(labels[labels != IGNORED], return_inverse=True)
    if len(values) < 2:
        raise ImagesError(
            f"the masks hold {len(values)} classes in the cropped images, at least 2 are needed"
        )
    classes = torch.full(labels.shape, IGNORED, dtype=torch.long)
    classes[torch.from_numpy(labels != IGNORED)] = torch.from_numpy(compact)
    classes = classes.to(tokens.device)
    results: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    for split in range(splits):
        halves = np.array_split(np.random.default_rng((seed, split)).permutation(len(tokens)), 2)
        train, held_out = (torch.from_numpy(np.sort(half)).to(tokens.device) for half in halves)
        x, y = _labelled(tokens[train], classes[train])
        x_test, y_test = _labelled(tokens[held_out], classes[held_out])
        if not (len(y) and len(y_test)):
            raise ImagesError(
                "half of the images hold no labelled patch; give more images or check the masks"
            )
        guesses = (
            linear_probe(x, y, x_test, len(values)),
            neighbour_probe(x, y, x_test, len(values), neighbours, seed=seed + split),
        )
        for result, guess in zip(results, guesses, strict=True):
            result.append(_confusion(y_test, guess, len(values)))
        if progress:
            progress("probe", split + 1, splits)
    return _score(results[0], values), _score(results[1], values)


def linear_probe(x: Tensor, y: Tensor, x_test: Tensor, classes: int) -> Tensor:
    """Fit logistic regression on tokens [M, D] and their classes [M]; the classes it gives to [M2, D]."""
    mean, deviation = x.mean(0), x.std(0, correction=0)
    deviation = deviation.clamp_min(STANDARD_FLOOR * float(deviation.mean()) + 1e-12)
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    weight = torch.zeros(x.shape[1], classes, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weight + bias, y) + PENALTY * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    return (x_test @ weight.detach() + bias.detach()).argmax(1)


def neighbour_probe(
    x: Tensor, y: Tensor, x_test: Tensor, classes: int, neighbours: int, seed: int = 0
) -> Tensor:
    """The classes of tokens [M2, D] by weighted votes of their nearest among [M, D] of classes [M]."""
    if len(x) > BANK:
        kept = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:BANK].to(x.device)
        x, y = x[kept], y[kept]
    x, x_test = (torch.nn.functional.normalize(part, dim=1) for part in (x, x_test))
    guesses = []
    for part in x_test.split(4096):  # 4,096 x 8,192 similarities are 128 MB
        similarity, nearest = (part @ x.T).topk(min(neighbours, len(x)), dim=1)
        votes = part.new_zeros(len(part), classes)
        votes.scatter_add_(1, y[nearest], ((similarity - 1) / TEMPERATURE).exp())
        guesses.append(votes.argmax(1))
    return torch.cat(guesses)


def token_labels(masks: NDArray[np.integer], grid: tuple[int, int], ignore: int = 255) -> NDArray[np.int64]:
    """The class of each patch: masks [n, h, w] -> [n, N], `IGNORED` where none fills half of it.

    Args:
        masks: classes of the pixels.
        grid: rows and columns of the tokens, N together.
        ignore: a value that is no class.

    Raises:
        ImagesError: the tokens are no grid.
    """
    rows, columns = grid
    tokens = rows * columns
    if not tokens:
        raise ImagesError(
            "the tokens are no grid of rows and columns, so patches cannot be matched with masks"
        )
    down, across = (  # pixel -> row or column of its patch
        np.arange(side) * count // side for side, count in zip(masks.shape[1:], grid, strict=True)
    )
    patch = (down[:, None] * columns + across[None, :]).ravel()
    pixels_of = np.bincount(patch, minlength=tokens)
    labels = np.full((len(masks), tokens), IGNORED, np.int64)
    for index, mask in enumerate(masks):
        values, compact = np.unique(mask, return_inverse=True)
        pairs = patch * len(values) + compact.ravel()
        counts = np.bincount(pairs, minlength=tokens * len(values)).reshape(tokens, -1)
        counts[:, values == ignore] = 0
        clear = counts.max(1) >= MAJORITY * pixels_of
        labels[index, clear] = values[counts.argmax(1)[clear]]
    return labels


def read_pairs(
    labelled: ProbeConfig, how: Preprocessing, progress: Progress | None = None
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Images [n, h, w, C] and their masks [n, h, w], of the same crop.

    Raises:
        ImagesError: a folder is missing, fewer than four pairs, or a pair that cannot be used.
    """
    folder, masks_folder = Path(labelled.images).expanduser(), Path(labelled.masks).expanduser()
    masks = {name.rpartition(".")[0]: name for name in images.offered(masks_folder)[0]}
    names = [name for name in images.offered(folder)[0] if name.rpartition(".")[0] in masks]
    if len(names) < 4:
        raise ImagesError(
            f"{folder}: {len(names)} images have a mask of the same name in {masks_folder}, "
            "at least 4 are needed"
        )
    names = images.seeded_order(names, labelled.seed)[: labelled.num_images]
    recipe = Recipe(preprocessing=how, bands=labelled.bands or (), scale=labelled.scale)
    files = recipe.look(folder, names)
    pixels = np.empty((len(names), *recipe.shape(files)), recipe.dtype(files))
    labels = np.empty(pixels.shape[:3], np.int32)
    read = partial(recipe.read, files=files)
    for index, (name, decoded) in enumerate(decoding.decode(folder, names, read)):
        if isinstance(decoded, ImagesError):
            raise ImagesError(f"{folder / name}: {decoded}; mend or remove it and its mask")
        pixels[index] = decoded
        mask = masks_folder / masks[name.rpartition(".")[0]]
        labels[index] = read_mask(mask, recipe.pixel_size(folder / name, files), how)
        if progress:
            progress("images", index + 1, len(names))
    return pixels, labels


def read_mask(path: Path, expected: tuple[int, int], how: Preprocessing) -> NDArray[np.int32]:
    """One mask, cropped as its image is: classes [h, w].

    Args:
        path: the mask.
        expected: width and height of its image.
        how: what is done to the image.

    Raises:
        ImagesError: it cannot be decoded, is a colour image, or has another size than its image.
    """
    try:
        with Image.open(path) as mask:
            if mask.mode not in ("P", "L", "1") and not mask.mode.startswith("I"):
                raise ImagesError(
                    f"{path}: is a {mask.mode} image, expected one channel whose pixel values are classes "
                    "(L, P or 16-bit); map colours to class numbers first"
                )
            if mask.size != expected:
                raise ImagesError(f"{path}: is {mask.size} px, its image is {expected} px; they must agree")
            return np.asarray(fit(mask, how, Image.Resampling.NEAREST)).astype(np.int32)
    except (OSError, SyntaxError, ValueError) as error:
        raise ImagesError(f"{path}: cannot be decoded ({type(error).__name__}: {error})") from error


def _key(how: Preprocessing) -> tuple[object, ...]:
    """Equal for images that look the same to a network, whatever it subtracts from them."""
    return how.channels, how.image_size, how.covered, how.crop_mode, how.interpolation


def _labelled(tokens: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [M, D] that have a class, and their classes [M]."""
    known = classes != IGNORED
    return tokens[known].float(), classes[known]


def _confusion(truth: Tensor, guess: Tensor, classes: int) -> NDArray[np.int64]:
    """Counts [C, C]: rows are true classes, columns guessed ones."""
    return (
        torch.bincount(truth * classes + guess, minlength=classes**2).reshape(classes, classes).cpu().numpy()
    )


def _score(confusions: list[NDArray[np.int64]], values: NDArray[np.int64]) -> Score:
    """Means over splits; a class counts in the splits whose held-out half holds it."""
    ious, mious, accuracies = [], [], []
    for confusion in confusions:
        hit, true, guessed = np.diag(confusion), confusion.sum(1), confusion.sum(0)
        present = true > 0
        iou = np.where(present, hit / np.maximum(true + guessed - hit, 1), np.nan)
        ious.append(iou)
        mious.append(float(iou[present].mean()))
        accuracies.append(float((hit[present] / true[present]).mean()))
    stacked = np.stack(ious)
    held = ~np.isnan(stacked).all(0)
    return Score(
        miou=statistics.fmean(mious),
        miou_std=statistics.stdev(mious) if len(mious) > 1 else float("nan"),
        accuracy=statistics.fmean(accuracies),
        iou=dict(zip(values[held].tolist(), np.nanmean(stacked[:, held], 0).tolist(), strict=True)),
    )
