"""DSE of a live network on held-out images, without a trace in the training around it.

Shapes: B images of a forward pass, H x W pixels, N tokens of an image, D feature width.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dse_monitor.metric import Components, NonFiniteFeatures, average, measure
from dse_monitor.seeding import seeded

IMAGE_KEYS = ("pixel_values", "image", "images")  # where a batch that is a mapping keeps its images


def dense_tokens(model: nn.Module, images: Tensor) -> Tensor:
    """Last-layer patch tokens [B, N, D] of a timm or a Hugging Face vision model for images [B, 3, H, W].

    timm: ``forward_features`` without class and register tokens, or the last map read row by row. Hugging
    Face: ``last_hidden_state`` of the base model; its leading tokens that are no patches are left out.

    Raises:
        ValueError: the model is of neither kind, or its output does not fit its patches (a masked
            autoencoder, for one): give a function of your own.
    """
    if hasattr(model, "forward_features"):
        features = model.forward_features(images)  # pyright: ignore[reportCallIssue]
        if isinstance(features, Tensor) and features.ndim == 3:
            return features[:, int(getattr(model, "num_prefix_tokens", 0)) :]
        if isinstance(features, Tensor) and features.ndim == 4:
            last = getattr(model, "output_fmt", "NCHW") == "NHWC"
            return features.flatten(1, 2) if last else features.flatten(2).transpose(1, 2)
    elif hasattr(model, "base_model") and hasattr(model, "config"):
        features = model.base_model(pixel_values=images).last_hidden_state  # pyright: ignore[reportCallIssue]
        if features.ndim == 4:
            return features.flatten(2).transpose(1, 2)
        return features[:, _prefix(features.shape[1], images, getattr(model.config, "patch_size", None)) :]
    raise ValueError(
        f"{type(model).__name__} is no timm or Hugging Face vision model whose patch tokens are known: pass "
        "tokens=, a function (model, images [B, 3, H, W]) -> [B, N, D], or encoder=, the submodule's name"
    )


def _prefix(found: int, images: Tensor, patch: Any) -> int:
    """How many of ``found`` tokens are no patches: those beyond the grid, or none of a coarser last stage."""
    rows, columns = (patch, patch) if isinstance(patch, int) else (patch or (0, 0))
    grid = (images.shape[-2] // rows) * (images.shape[-1] // columns) if rows and columns else 0
    if 0 < grid <= found:
        return found - grid
    if found and grid % found == 0 and math.log(grid // found, 4).is_integer():
        return 0
    raise ValueError(
        f"{found} tokens do not fit {images.shape[-2]} x {images.shape[-1]} pixels in patches of {patch}: "
        "pass tokens=, a function (model, images [B, 3, H, W]) -> [B, N, D]"
    )


@dataclass(frozen=True, kw_only=True)
class InlineDSE:
    """How DSE is measured inside a training run.

    Measuring changes nothing of the run: modules keep their modes, running statistics and gradients, and
    every global random generator its state. In a distributed run every process measures the same images, so
    that sharded networks work; the numbers are equal.

    Attributes:
        images: held-out images, normalised as the network wants them: a tensor [n, 3, H, W], a Dataset, or
            an iterable of batches such as a DataLoader. Of a batch that is a tuple or list the first entry is
            taken, of a mapping ``pixel_values``, ``image`` or ``images``. They are read anew each time, under
            the same seed.
        tokens: function (encoder, images [B, 3, H, W]) -> patch tokens [B, N, D] without class tokens.
        encoder: name of the submodule that ``tokens`` gets, such as ``backbone``; empty for the whole model.
        every: epochs between two measurements.
        batch: images per metric batch, part of the definition of m_dim; the monitor's default too. Their
            tokens lie on the model's device for a moment (1,024 images of ViT-S/16: 0.3 GB). Whole batches
            count; only where there are fewer images than one, all of them do.
        micro_batch: images per forward pass, where ``images`` is no iterable of batches.
        group: consecutive images clustered together.
        local_clusters: clusters per image.
        global_clusters: clusters per group.
        normalize: L2-normalise tokens first.
        seed: of the clustering, and of whatever ``images`` draws.
    """

    images: Tensor | Dataset[Any] | Iterable[Any]
    tokens: Callable[[nn.Module, Tensor], Tensor] = dense_tokens
    encoder: str = ""
    every: int = 1
    batch: int = 1024
    micro_batch: int = 64
    group: int = 8
    local_clusters: int = 3
    global_clusters: int = 24
    normalize: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("every", "batch", "micro_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, got {getattr(self, name)}")
        if isinstance(self.images, Iterator):
            raise ValueError("images is an iterator, which ends after one pass; give a list or a DataLoader")

    def due(self, epochs_done: int) -> bool:
        """Whether a measurement belongs after so many finished epochs."""
        return epochs_done > 0 and epochs_done % self.every == 0

    def __call__(self, model: nn.Module) -> Components:
        """Components of DSE of the model as it is now.

        Raises:
            NonFiniteFeatures: NaN or infinity among the tokens.
            ValueError: no images, no such submodule, or tokens that are not [B, N, D].
        """
        encoder = self._encoder(model)
        with _untouched(encoder, self.seed):
            return average([self._components(tokens) for tokens in self._metric_batches(encoder)])

    def check(self, model: nn.Module) -> None:
        """Make the tokens of a first batch of images, so that a mistake shows before an epoch has passed.

        Raises:
            ValueError: as measuring does.
        """
        encoder = self._encoder(model)
        with _untouched(encoder, self.seed):
            next(self._tokens(encoder), None)

    def scalars(self, model: nn.Module) -> dict[str, float]:
        """What to log: ``dse/...`` by name, DSE itself at lambda 1, for lambda belongs to a whole run.

        A network whose tokens are not finite gives a warning and no numbers; the training goes on.
        """
        try:
            found = self(model)
        except NonFiniteFeatures as error:
            warnings.warn(f"DSE was not measured: {error}", stacklevel=2)
            return {}
        return {
            "dse/dse": found.dse(),
            "dse/separability": found.separability,
            "dse/m_inter": found.m_inter,
            "dse/m_intra": found.m_intra,
            "dse/m_dim": found.m_dim,
        }

    def _encoder(self, model: nn.Module) -> nn.Module:
        try:
            return model.get_submodule(self.encoder)
        except AttributeError as error:
            names = ", ".join(name for name, _ in model.named_children())
            raise ValueError(
                f"{type(model).__name__} has no submodule {self.encoder!r}; it has {names}"
            ) from error

    def _components(self, tokens: Tensor) -> Components:
        return measure(
            tokens,
            group=self.group,
            local_clusters=self.local_clusters,
            global_clusters=self.global_clusters,
            normalize=self.normalize,
            seed=self.seed,
        )

    def _metric_batches(self, encoder: nn.Module) -> Iterator[Tensor]:
        """Tokens [batch, N, D], batch after batch."""
        waiting: list[Tensor] = []
        count, whole = 0, 0
        for tokens in self._tokens(encoder):
            waiting.append(tokens)
            count += len(tokens)
            while count >= self.batch:
                joined = torch.cat(waiting)
                yield joined[: self.batch]
                waiting, count, whole = [joined[self.batch :]], count - self.batch, whole + 1
        if not whole:
            if not count:
                raise ValueError("there are no images to measure DSE on: `images` gave none")
            yield torch.cat(waiting)

    def _tokens(self, encoder: nn.Module) -> Iterator[Tensor]:
        """Tokens [B, N, D] of each forward pass, in the arithmetic of the weights."""
        like = next((p for p in encoder.parameters() if p.is_floating_point()), torch.empty(0))
        for images in self._forward_batches():
            tokens = self.tokens(encoder, images.to(like.device, like.dtype))
            if not isinstance(tokens, Tensor) or tokens.ndim != 3 or len(tokens) != len(images):
                found = list(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
                raise ValueError(f"tokens() returned {found} for {len(images)} images; expected [B, N, D]")
            yield tokens

    def _forward_batches(self) -> Iterator[Tensor]:
        if isinstance(self.images, Tensor):
            yield from self.images.split(self.micro_batch)
            return
        batches = (
            DataLoader(self.images, self.micro_batch) if isinstance(self.images, Dataset) else self.images
        )
        for batch in batches:
            yield _images_of(batch)


def _images_of(batch: Any) -> Tensor:
    found = batch
    if isinstance(batch, Mapping):
        found = next((batch[key] for key in IMAGE_KEYS if key in batch), None)
    elif isinstance(batch, Sequence) and batch:
        found = batch[0]
    if not isinstance(found, Tensor) or found.ndim != 4:
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"a batch of `images` ({type(batch).__name__}) gave {shape}; expected a tensor [B, 3, H, W]"
        )
    return found


@contextlib.contextmanager
def _untouched(model: nn.Module, seed: int) -> Iterator[None]:
    """Evaluation mode, no gradients, seeded generators; everything is put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices), seeded(seed), torch.no_grad():
        try:
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training
