"""Procedural scenes with segmentation masks: textured objects on textured ground. numpy and Pillow only.

An object's class is a pair (texture, outline); every texture and every outline serves two classes, so neither
alone tells the class. Colour is a hint as in nature: a class keeps near its hue in half of the cases and
takes any other in the rest. Light, scale, rotation, occlusion and shadows vary. A scene is a function of
(index, seed); its size only sets the resolution.

Lengths are in units of the image side. H = W = size.
"""

from __future__ import annotations

import colorsys
import functools
import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dse_monitor import atomic
from dse_monitor.errors import OutputError

Field = NDArray[np.floating]  # one value per pixel, [h, w]

GROUNDS = ("grass", "ripples", "paving", "pebbles")
OBJECTS = (
    ("striped", "disc"),
    ("dotted", "disc"),
    ("dotted", "box"),
    ("checked", "box"),
    ("checked", "star"),
    ("rough", "star"),
    ("rough", "ring"),
    ("striped", "ring"),
)
CLASSES = GROUNDS + tuple(f"{texture} {outline}" for texture, outline in OBJECTS)  # mask value = index

STRAY_SHARE = 0.5  # of grounds and objects have a hue that says nothing of their class
MINIMUM_SIZE = 16  # px; below it no texture can be told from another
_VERSION = 1  # raised when the same (index, seed) gives another scene
_HUE_STRIDE = 5 / 12  # of the colour circle, from class to class, beginning with green grass
_LATTICE = 24  # cells per side of fine noise: the finest that 64 px still show


def generate(index: int, size: int = 64, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Scene number `index`: the image [H, W, 3] and its mask [H, W] of indices into `CLASSES`.

    Pure: equal arguments give equal arrays, and no global random state is read or moved. The same index and
    seed at another size is the same scene at another resolution.

    Raises:
        ValueError: negative index or seed, or a size below `MINIMUM_SIZE`.
    """
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed must not be negative, got {index} and {seed}")
    if size < MINIMUM_SIZE:
        raise ValueError(f"size must be at least {MINIMUM_SIZE} px, got {size}")
    rng = np.random.default_rng((seed, index))
    light = _direction(rng)
    image, mask = _paint_ground(rng, size)
    count = int(rng.integers(3, 7))
    for y in np.sort(rng.uniform(0.12, 0.92, count)):  # far objects first, so that near ones cover them
        _paint_object(rng, image, mask, float(y), light)
    _light_scene(rng, image, light)
    image += rng.normal(0.0, 0.015, image.shape).astype(
        np.float32
    )  # last draw: the only one that depends on size
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), mask


def write_folder(
    folder: Path,
    count: int,
    size: int = 224,
    seed: int = 0,
    masks: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write scenes 0 .. count-1 as PNG files; return the folder that holds the images.

    With masks: `folder/images/000000.png` and `folder/masks/000000.png` (palette files whose pixel values are
    class indices); without: `folder/000000.png`. Files appear whole or not at all and those already there are
    kept, so an interrupted call can be repeated and a larger count extends a folder.

    Raises:
        OutputError: the folder holds scenes of other settings, or cannot be written.
    """
    folder = Path(folder)
    images = folder / "images" if masks else folder
    try:
        images.mkdir(parents=True, exist_ok=True)
        if masks:
            (folder / "masks").mkdir(exist_ok=True)
        _claim_folder(folder, {"version": _VERSION, "size": size, "seed": seed, "masks": masks})
        for index in range(count):
            name = f"{index:06d}.png"
            targets = [images / name] + ([folder / "masks" / name] if masks else [])
            if not all(target.exists() for target in targets):
                image, mask = generate(index, size, seed)
                pictures = [Image.fromarray(image), _indexed(mask)]
                for target, picture in zip(targets, pictures, strict=False):
                    _save(picture, target)
            if progress:
                progress(index + 1, count)
    except OSError as error:
        raise OutputError(
            f"{folder}: scenes cannot be written ({error}); choose a writable folder"
        ) from error
    return images


# --- painting ---------------------------------------------------------------------------------------------


def _paint_ground(rng: np.random.Generator, size: int) -> tuple[Field, NDArray[np.uint8]]:
    """One or two grounds that meet along a wavy line: image [H, W, 3] in [0, 1] and mask [H, W]."""
    y, x = _grid(size)
    first, second = (int(k) for k in rng.permutation(len(GROUNDS))[:2])
    image = _tones(_GROUND_TEXTURES[first](rng, y, x), _palette(rng, first, contrast=0.25, saturation=0.5))
    mask = np.full((size, size), first, np.uint8)
    if rng.random() < 0.75:
        angle, offset = rng.uniform(-0.5, 0.5), rng.uniform(0.3, 0.7)
        wave = rng.uniform(0.01, 0.05) * np.sin(x * rng.uniform(4, 14) + rng.uniform(0, 6.3))
        other = _tones(
            _GROUND_TEXTURES[second](rng, y, x), _palette(rng, second, contrast=0.25, saturation=0.5)
        )
        alpha = np.clip((y - offset - (x - 0.5) * angle + wave) * size + 0.5, 0, 1).astype(np.float32)
        image += alpha[..., None] * (other - image)
        mask[alpha > 0.5] = second
    return image, mask


def _paint_object(
    rng: np.random.Generator, image: Field, mask: NDArray[np.uint8], y0: float, light: tuple[float, float]
) -> None:
    """Draw one object and its shadow into image [H, W, 3] and mask [H, W]; nearer (lower) ones are larger."""
    size = mask.shape[0]
    kind = int(rng.integers(len(OBJECTS)))
    texture, outline = OBJECTS[kind]
    radius = rng.uniform(0.11, 0.18) * (0.75 + 0.75 * y0)
    x0, turn, aspect = rng.uniform(0.08, 0.92), rng.uniform(0, 2 * math.pi), rng.uniform(0.7, 1.0)
    palette = _palette(rng, len(GROUNDS) + kind, contrast=0.4, saturation=0.85)

    reach = 1.5 * radius  # outline and shadow stay within
    top, bottom = (int(np.clip((y0 + s * reach) * size, 0, size)) for s in (-1, 1))
    left, right = (int(np.clip((x0 + s * reach) * size, 0, size)) for s in (-1, 1))
    y, x = _grid(size)
    dy, dx = y[top:bottom, left:right] - y0, x[top:bottom, left:right] - x0
    u = (dx * math.cos(turn) + dy * math.sin(turn)) / radius
    v = (dy * math.cos(turn) - dx * math.sin(turn)) / (radius * aspect)
    distance, tint = _OUTLINES[outline](rng, u, v), _OBJECT_TEXTURES[texture](rng, u, v * aspect)
    if distance.size == 0:
        return

    alpha = np.clip(0.5 - distance * radius * size, 0, 1)[..., None]
    sx, sy = -0.3 * light[0], -0.3 * light[1]  # the shadow falls away from the light
    shadow = np.clip(1.25 - np.hypot(dx / radius - sx, dy / radius - sy), 0, 0.5)[..., None]
    shade = 1 + 0.28 * (dx * light[0] + dy * light[1])[..., None] / radius - 0.18 * (u * u + v * v)[..., None]
    window = image[top:bottom, left:right]
    window *= 1 - 0.8 * shadow
    window += alpha * (_tones(tint, palette) * shade - window)
    mask[top:bottom, left:right][alpha[..., 0] > 0.5] = len(GROUNDS) + kind


def _light_scene(rng: np.random.Generator, image: Field, light: tuple[float, float]) -> None:
    """Uneven illumination in place: a slope towards the light, a soft blotch, grain, and a coloured cast."""
    size = image.shape[0]
    y, x = _grid(size)
    slope = rng.uniform(0.1, 0.45) * ((x - 0.5) * light[0] + (y - 0.5) * light[1])
    blotch = 0.22 * _noise(rng, size, 4)
    cast = rng.uniform(0.88, 1.08, 3).astype(np.float32)
    grain = 0.10 * _noise(rng, size, 3 * _LATTICE)
    image *= (rng.uniform(0.8, 1.1) + slope + blotch + grain)[..., None] * cast


# --- textures: coordinates in, values in [0, 1] out -------------------------------------------------------


def _grass(rng: np.random.Generator, y: Field, x: Field) -> Field:
    """Short upright blades: noise much finer across than along."""
    size = y.shape[0]
    blades = _noise(rng, size, 2 * _LATTICE, _LATTICE // 2) + 0.5 * _noise(rng, size, _LATTICE, 9)
    return np.clip(0.5 + 0.55 * blades, 0, 1)


def _ripples(rng: np.random.Generator, y: Field, x: Field) -> Field:
    """Wind or water ripples: waves bent by slow noise."""
    size, turn = y.shape[0], rng.uniform(0, np.pi)
    phase = (x * math.cos(turn) + y * math.sin(turn)) * rng.uniform(60, 95)
    return 0.5 + 0.5 * np.sin(phase + 3.5 * _noise(rng, size, 5)) * (0.75 + 0.25 * _noise(rng, size, 6))


def _paving(rng: np.random.Generator, y: Field, x: Field) -> Field:
    """Bricks in courses, each of its own tone, with dark joints."""
    turn, height, length = rng.uniform(-0.6, 0.6), rng.uniform(0.08, 0.12), rng.uniform(1.5, 2.4)
    row = (y * math.cos(turn) - x * math.sin(turn)) / height + 64
    course = np.floor(row)
    column = (x * math.cos(turn) + y * math.sin(turn)) / (height * length) + 0.5 * (course % 2) + 64
    brick = np.floor(column)
    joint = np.minimum(_edge(row - course), _edge(column - brick) * length)
    tone = _scatter(course, brick, int(rng.integers(1, 1000)))
    return np.clip(joint * height * 55 - 0.35, 0, 1) * (0.62 + 0.38 * tone)


def _pebbles(rng: np.random.Generator, y: Field, x: Field) -> Field:
    """Round stones on a jittered lattice: each pixel takes the nearest stone, dark between them."""
    cells, turn, salt = rng.uniform(8, 13), rng.uniform(0, math.pi), int(rng.integers(1, 1000))
    row = (y * math.cos(turn) - x * math.sin(turn)) * cells + 64
    column = (x * math.cos(turn) + y * math.sin(turn)) * cells + 64
    near = np.full(y.shape, 9.0, np.float32)
    tone = np.zeros(y.shape, np.float32)
    base_row, base_column = np.floor(row - 0.5), np.floor(column - 0.5)
    for i in (0, 1):  # the four nearest lattice cells are enough while stones keep to theirs
        for j in (0, 1):
            cell_row, cell_column = base_row + i, base_column + j
            jitter = _scatter(cell_row, cell_column, salt)
            dy = row - cell_row - 0.2 - 0.6 * jitter
            dx = column - cell_column - 0.2 - 0.6 * ((jitter * 61.0) % 1)
            squared = dy * dy + dx * dx
            closer = squared < near
            near = np.where(closer, squared, near)
            tone = np.where(closer, jitter, tone)
    return np.clip(1.15 - 3.4 * near, 0, 1) * (0.55 + 0.45 * ((tone * 31.0) % 1))


def _striped(rng: np.random.Generator, u: Field, v: Field) -> Field:
    return _square(np.sin(u * rng.uniform(6.5, 9.5) + rng.uniform(0, 6.3)))


def _dotted(rng: np.random.Generator, u: Field, v: Field) -> Field:
    rate, phase = rng.uniform(7.0, 10.0), rng.uniform(0, 6.3, 2).tolist()
    return _square(np.cos(u * rate + phase[0]) + np.cos(v * rate + phase[1]) - 0.55)


def _checked(rng: np.random.Generator, u: Field, v: Field) -> Field:
    rate, phase = rng.uniform(5.0, 7.5), rng.uniform(0, 6.3, 2).tolist()
    return _square(2 * np.sin(u * rate + phase[0]) * np.sin(v * rate + phase[1]))


def _rough(rng: np.random.Generator, u: Field, v: Field) -> Field:
    """Bark or rust: a sum of waves in random directions, which looks like noise and turns with the object."""
    turn, rate, phase = rng.uniform((0, 5, 0), (np.pi, 17, 6.3), (6, 3)).T.tolist()
    waves = sum(
        np.sin((u * math.cos(a) + v * math.sin(a)) * b + c) for a, b, c in zip(turn, rate, phase, strict=True)
    )
    return np.clip(0.5 + 0.27 * waves, 0, 1)  # pyright: ignore[reportReturnType]


# --- outlines: local coordinates in, signed distance out (negative inside), about 1 across at the rim -----


def _disc(rng: np.random.Generator, u: Field, v: Field) -> Field:
    return np.hypot(u, v) - 0.95


def _box(rng: np.random.Generator, u: Field, v: Field) -> Field:
    corner = 0.15
    du, dv = np.abs(u) - 0.85 + corner, np.abs(v) - 0.85 + corner
    return np.hypot(np.maximum(du, 0), np.maximum(dv, 0)) + np.minimum(np.maximum(du, dv), 0) - corner


def _star(rng: np.random.Generator, u: Field, v: Field) -> Field:
    points = int(rng.integers(4, 7))
    return (np.hypot(u, v) - 0.82 - 0.28 * np.cos(points * np.arctan2(v, u))) * 0.75


def _ring(rng: np.random.Generator, u: Field, v: Field) -> Field:
    return np.abs(np.hypot(u, v) - 0.72) - 0.28


_GROUND_TEXTURES = (_grass, _ripples, _paving, _pebbles)  # in the order of GROUNDS
_OBJECT_TEXTURES = {"striped": _striped, "dotted": _dotted, "checked": _checked, "rough": _rough}
_OUTLINES = {"disc": _disc, "box": _box, "star": _star, "ring": _ring}


# --- pieces -----------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Field, Field]:
    """Pixel centres y, x in (0, 1), each [size, size]."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    y, x = np.meshgrid(centres, centres, indexing="ij")
    y.flags.writeable = x.flags.writeable = False
    return y, x


@functools.lru_cache(maxsize=64)
def _interpolation(size: int, cells: int) -> Field:
    """Matrix [size, cells + 1] that spreads lattice values over pixels with a smooth (cosine) blend."""
    position = (np.arange(size) + 0.5) / size * cells
    cell = np.minimum(position.astype(int), cells - 1)
    blend = 0.5 - 0.5 * np.cos(np.pi * (position - cell))
    matrix = np.zeros((size, cells + 1), np.float32)
    matrix[np.arange(size), cell] = 1 - blend
    matrix[np.arange(size), cell + 1] = blend
    return matrix


def _noise(rng: np.random.Generator, size: int, across: int, along: int | None = None) -> Field:
    """Smooth noise in [-1, 1], [size, size]: `across` cells from left to right, `along` downwards."""
    along = along or across
    lattice = rng.uniform(-1, 1, (along + 1, across + 1)).astype(np.float32)
    return _interpolation(size, along) @ lattice @ _interpolation(size, across).T


def _scatter(row: Field, column: Field, salt: int) -> Field:
    """A pseudo-random value in [0, 1) per lattice cell."""
    mixed = row.astype(np.uint32) * np.uint32(73856093) ^ column.astype(np.uint32) * np.uint32(19349663)
    mixed = (mixed + np.uint32(salt)) * np.uint32(2654435761)
    return ((mixed >> np.uint32(16)) & np.uint32(0xFFFF)).astype(np.float32) / 65536


def _edge(fraction: Field) -> Field:
    """Distance of a fraction in [0, 1) to the nearer end."""
    return 0.5 - np.abs(fraction - 0.5)


def _square(wave: Field) -> Field:
    """A wave about zero as a soft two-tone pattern in [0, 1]."""
    return np.clip(0.5 + 1.4 * wave, 0, 1)


def _direction(rng: np.random.Generator) -> tuple[float, float]:
    angle = rng.uniform(0, 2 * math.pi)
    return math.cos(angle), math.sin(angle)


def _palette(rng: np.random.Generator, label: int, contrast: float, saturation: float) -> Field:
    """A dark and a light colour [2, 3] for a class, at least `contrast` apart in brightness."""
    usual, strays = (1 / 3 + label * _HUE_STRIDE + rng.normal(0, 0.05)) % 1, rng.random() < STRAY_SHARE
    any_hue = rng.random()
    hue = any_hue if strays else usual
    shift = rng.choice((0.0, 0.08, -0.08, 0.45)) + rng.uniform(-0.05, 0.05)
    dark = rng.uniform(0.12, 0.80 - contrast)
    bright = rng.uniform(dark + contrast, 0.95)
    pair = (
        (hue, rng.uniform(0.05, saturation), dark),
        ((hue + shift) % 1.0, rng.uniform(0.05, 0.8 * saturation), bright),
    )
    colours = np.array([colorsys.hsv_to_rgb(*colour) for colour in pair], np.float32)
    return colours


def _tones(values: Field, palette: Field) -> Field:
    """Values [h, w] in [0, 1] as colours [h, w, 3] between the two of the palette."""
    return palette[0] + values.astype(np.float32)[..., None] * (palette[1] - palette[0])


def _indexed(mask: NDArray[np.uint8]) -> Image.Image:
    """A mask [H, W] as a palette picture: its pixel values are class indices, its colours are for people."""
    picture = Image.fromarray(mask)
    colours = [
        colorsys.hsv_to_rgb(i / len(CLASSES), 0.35 if i < len(GROUNDS) else 0.85, 0.9)
        for i in range(len(CLASSES))
    ]
    picture.putpalette([round(255 * value) for colour in colours for value in colour])
    return picture


def _claim_folder(folder: Path, recipe: dict[str, object]) -> None:
    """Write down how the scenes of a folder are made, or check that they are made that way."""
    note = folder / "scenes.json"
    if not note.exists():
        atomic.write_bytes(note, json.dumps(recipe).encode())
        return
    try:
        found = json.loads(note.read_bytes())
    except ValueError:
        found = None
    if found != recipe:
        raise OutputError(
            f"{folder}: holds scenes made with {found}, asked for {recipe}; choose another folder"
        )


def _save(picture: Image.Image, target: Path) -> None:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    atomic.write_bytes(target, stream.getvalue())
