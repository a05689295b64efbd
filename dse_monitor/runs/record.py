"""What is remembered of a checkpoint: plain frozen dataclasses, their JSON, and the names in event files.

Standard library only: the watcher, the TensorBoard plugin and notebooks read records without torch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any

from dse_monitor.facts import Fact
from dse_monitor.metric.components import Components
from dse_monitor.preprocessing import Preprocessing, pair

SCHEMA = 1  # raised when a field changes its meaning; a reader refuses a larger one

PROBE_FOLDER = "probe"  # below the output folder: what probes with labels found
OUTPUT_FOLDER = "dse"  # below the run: ledger, event file, best.json, image cache, feature maps

# Names in the event file; docs/watching.md and tb_plugin/http_api.md explain the encoding.
PLUGIN = "dse"
PLUGIN_STATE = "dse_state"
TAG_POINT = "dse/point/"
TAG_META = "dse/meta/"
TAG_ALERT = "dse/alert/"
TAG_STATE = "dse/state"
TAG_MAP = "dse/map/"
SCALAR_TAGS = (
    "dse/score",
    "dse/separability",
    "dse/m_inter",
    "dse/m_intra_image",
    "dse/m_intra_batch",
    "dse/m_dim",
)
STATUS_CODES = {"scored": 0.0, "failed": 1.0, "invalid": 2.0}

# One row of float64 per evaluation. NaN means unknown, or not measured.
POINT_COLUMNS = (
    "schema",  # record.SCHEMA
    "seq",  # sequence number of the record
    "status",  # 0 scored, 1 failed, 2 invalid
    "epoch",  # epochs done
    "step",  # optimiser steps done
    "mtime",  # modification time of the file, seconds since 1970
    "wall_time",  # time of the evaluation, seconds since 1970
    "m_inter",
    "m_intra_image",
    "m_intra_batch",
    "m_dim",
    "m_inter_se",
    "m_intra_image_se",
    "m_intra_batch_se",
    "m_dim_se",
    "separability_se",
    "separability_dim_cov",
    "seconds",  # wall time the evaluation took
    "settings",  # fingerprint of the settings as a whole number (48 bits)
    "file",  # digest of the checkpoint's path as a whole number (48 bits)
    # Columns that rows of earlier versions lack:
    "within",  # 1 for a checkpoint whose name tells that it was saved within its first epoch
    "content",  # the first 48 bits of the encoder's digest, as a whole number
)
FIRST_COLUMNS = 20  # that every row has


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that changes the numbers. Values under different settings are never compared.

    Attributes:
        images: fingerprint of the held-out images: their pixels, in order, and how files became pixels.
        num_images: how many of them were measured.
        resize: shorter side after resizing, pixels; height and width of what was covered if no square.
        crop: side of the images the network saw, pixels; height and width if they are no squares.
        mean: per-channel mean subtracted from images in [0, 1].
        std: per-channel standard deviation divided by.
        batch: images per metric batch; M_dim depends on it.
        group: images clustered together for the batch radius and the separation.
        local_clusters: clusters per image.
        global_clusters: clusters per group.
        normalize: whether tokens were L2-normalised first.
        layer: which tokens were read.
        precision: arithmetic of the forward pass.
        seed: seed of clustering and permutation.
        interpolation: filter that resized the images.
        crop_mode: ``center``, or ``squash`` where their ratio was not kept.
        channels: of the images.
        bands: which bands of a file they are, counted from 1; empty for all in their order.
        scaling: how values came to the unit of ``mean``, in words; empty for 8 bits by 255.
        reading: digest of what was read or assumed about the network beside its tensors; empty if unknown.
        facts: that itself: what changes the tokens and is not to be seen in the weights, and what each rests
            on; empty in records of earlier versions. Equal settings may give other sources.
    """

    images: str
    num_images: int
    resize: int | tuple[int, int] = 256
    crop: int | tuple[int, int] = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    batch: int = 1024
    group: int = 8
    local_clusters: int = 3
    global_clusters: int = 24
    normalize: bool = True
    layer: str = "last"
    precision: str = "float32"
    seed: int = 0
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    channels: int = 3
    bands: tuple[int, ...] = ()
    scaling: str = ""
    reading: str = ""
    facts: tuple[Fact, ...] = field(default=(), compare=False)

    @property
    def preprocessing(self) -> Preprocessing:
        """What was done to an image before the network saw it."""
        return Preprocessing(
            channels=self.channels,
            image_size=pair(self.crop),
            resize=pair(self.resize),
            crop_mode=self.crop_mode,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that are equal exactly when all settings are."""
        data = _as_before({**dataclasses.asdict(self), "facts": ()})  # `reading` tells what counts of them
        return hashlib.sha256(_canonical(data)).hexdigest()[:12]


# Newer than the first records: left out where they say what was meant before, so that fingerprints, tables
# and event files of older runs stay what they were.
_LATER_SETTINGS: dict[str, Any] = {
    field.name: field.default
    for field in dataclasses.fields(Settings)
    if field.name in ("interpolation", "crop_mode", "channels", "bands", "scaling", "reading", "facts")
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Which file an evaluation belongs to and what was recognised in it.

    Attributes:
        path: path of the checkpoint relative to the run, with forward slashes.
        aliases: other names of the same content (hard links, copies, ``latest``).
        content: digest of the encoder's bytes; empty when the file could not be read.
        size: bytes on disk.
        mtime: modification time, seconds since 1970.
        epoch: epochs done, or None.
        epoch_source: where the epoch was found, in words; empty when there is none.
        step: optimiser steps done, or None.
        step_source: where the step was found, in words; empty when there is none.
        layout: name of the training code's layout.
        encoder: which network of the file was evaluated, in words ("teacher", "online backbone").
        arch: the network built, in words ("vit 384x12, 6 heads, patch 16").
    """

    path: str
    aliases: tuple[str, ...] = ()
    content: str = ""
    size: int = 0
    mtime: float = math.nan
    epoch: float | None = None
    epoch_source: str = ""
    step: int | None = None
    step_source: str = ""
    layout: str = ""
    encoder: str = ""
    arch: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One checkpoint, measured or refused.

    Attributes:
        status: ``scored``; ``failed`` (could not be measured, see ``reason``); ``invalid`` (measured, but the
            weights or features are not finite or constant, so the number means nothing).
        source: the file.
        settings: how it was measured; None when it failed before that was known.
        components: the numbers; None unless ``scored``.
        reason: why it failed or is invalid, one line: found, expected, what to do.
        error: class name of the error behind ``reason``.
        seconds: wall time spent, by stage ("read", "forward", "metric", "total").
        wall_time: when it was measured, seconds since 1970.
        seq: strictly growing number within a run, microseconds since 1970 or the last one plus one; 0 until
            recorded.
        map_file: feature-map image relative to the output folder; empty if there is none.
        companions: other label-free metrics on the same tokens, by name.
    """

    status: str
    source: Source
    settings: Settings | None = None
    components: Components | None = None
    reason: str = ""
    error: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    wall_time: float = 0.0
    seq: int = 0
    map_file: str = ""
    companions: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One change of an alert's state, worth telling somebody.

    Attributes:
        kind: ``degradation``, ``non-finite``, ``health``, ``plateau`` or ``test``.
        status: ``pending``, ``firing`` or ``resolved``.
        severity: ``info``, ``warning`` or ``critical``.
        run: name of the run.
        epoch: epochs done at the checkpoint that changed the state.
        step: steps done at it.
        since: position on ``axis`` from which the drop is counted.
        axis: ``epoch``, ``step`` or ``order``: the unit of ``since`` and ``best_at`` (see order.py).
        best_at: position of the best checkpoint.
        best_path: its path relative to the run.
        layout: name of the training code's layout it was written in.
        drop: DSE of the best less DSE now, at ``lam``.
        drop_se: standard error of ``drop``.
        lam: the lambda both were computed with.
        shares: part of the drop by cause, summing to 1: ``separability`` and ``m_dim``.
        cause: ``separability``, ``m_dim``, ``both`` or empty.
        message: the whole story in one or two sentences.
        key: equal for two reports of the same change: run, kind, episode, status.
        wall_time: seconds since 1970.
        seq: as in Evaluation.
    """

    kind: str
    status: str
    severity: str = "warning"
    run: str = ""
    epoch: float | None = None
    step: int | None = None
    since: float | None = None
    axis: str = "epoch"
    best_at: float | None = None
    best_path: str = ""
    layout: str = ""
    drop: float = math.nan
    drop_se: float = math.nan
    lam: float = 1.0
    shares: dict[str, float] = field(default_factory=dict)
    cause: str = ""
    message: str = ""
    key: str = ""
    wall_time: float = 0.0
    seq: int = 0


def to_json(record: Evaluation | Alert | Settings | Source | Components) -> dict[str, Any]:
    """A record as plain JSON types; NaN and infinities become None, so the text is valid JSON everywhere."""
    data = dataclasses.asdict(record)
    if isinstance(record, Settings):  # a record of an earlier version stays as it was written
        data = _as_before(data)
    elif isinstance(record, Evaluation):
        if data["settings"] is not None:
            data["settings"] = _as_before(data["settings"])
    return finite(data)


def evaluation_from_json(data: dict[str, Any]) -> Evaluation:
    """The inverse of :func:`to_json` for an Evaluation; fields of a newer minor version are ignored."""
    fields = _known(Evaluation, data)
    fields["source"] = Source(**_tuples(_known(Source, data["source"])))
    if data.get("settings") is not None:
        fields["settings"] = _settings(json.dumps(data["settings"], sort_keys=True))
    if data.get("components") is not None:
        fields["components"] = Components(**_floats(Components, _known(Components, data["components"])))
    return Evaluation(**fields)


@functools.lru_cache(maxsize=64)
def _settings(text: str) -> Settings:
    """The same object for the same settings: a run has few, and each works its fingerprint out once."""
    fields = _tuples(_known(Settings, json.loads(text)))
    fields["facts"] = tuple(Fact(**_known(Fact, fact)) for fact in fields.get("facts", ()))
    return Settings(**fields)


def alert_from_json(data: dict[str, Any]) -> Alert:
    """The inverse of :func:`to_json` for an Alert."""
    return Alert(**_floats(Alert, _known(Alert, data)))


def _as_before(settings: dict[str, Any]) -> dict[str, Any]:
    """The fields of Settings without the newer ones that are at their defaults."""
    return {
        name: value
        for name, value in settings.items()
        if name not in _LATER_SETTINGS or value != _LATER_SETTINGS[name]
    }


def _canonical(data: dict[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


def finite(value: Any) -> Any:
    """The value with NaN and infinities replaced by None, throughout dictionaries and lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def _known(cls: type, data: dict[str, Any]) -> dict[str, Any]:
    names = _names(cls)
    return {key: value for key, value in data.items() if key in names}


@functools.cache
def _names(cls: type, kind: str = "") -> frozenset[str]:
    """Fields of a record; those of one type if ``kind`` names it."""
    return frozenset(f.name for f in dataclasses.fields(cls) if kind in ("", f.type))


def _tuples(data: dict[str, Any]) -> dict[str, Any]:
    data = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    return {key: math.nan if key == "mtime" and value is None else value for key, value in data.items()}


def _floats(cls: type, data: dict[str, Any]) -> dict[str, Any]:
    """Restore NaN where a plain float field was written as None."""
    plain = _names(cls, "float")
    return {key: math.nan if value is None and key in plain else value for key, value in data.items()}
