"""Feature maps: files beside the runs, where they can be reached; see `data.Reader.picture` for the rest."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGE_BYTES = 4 << 20  # a larger feature map is not one of ours
IMAGES_FILE = "media/images.webp"  # the original images, in the order of the tiles of every map
_MAP_FILE = re.compile(r"media/(?!\.)[A-Za-z0-9._-]{1,128}\.(png|webp)")
_IMAGE_TYPES = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
)


@dataclass(frozen=True)
class Folders:
    """Where runs lie on this machine; for feature maps, which are plain files.

    Attributes:
        roots: pairs of a run-name prefix (empty for none) and a folder.
    """

    roots: tuple[tuple[str, Path], ...]

    @classmethod
    def from_flags(cls, flags: Any) -> Folders:
        """Read ``--logdir`` or ``--logdir_spec``; addresses such as gs:// are left out."""
        logdir = getattr(flags, "logdir", None) or ""
        spec = getattr(flags, "logdir_spec", None) or ""
        parts = [("", logdir)] if logdir else [_named(part) for part in spec.split(",") if part]
        return cls(tuple((name, Path(path).expanduser()) for name, path in parts if "://" not in path))

    def image(self, run: str, map_file: str) -> tuple[bytes, str] | None:
        """A feature map and its media type; None unless it is an image inside the run's media folder.

        Args:
            run: name of the run that holds the DSE data.
            map_file: path relative to the run's output folder, as its metadata says.
        """
        path = self.image_path(run, map_file)
        if path is None:
            return None
        try:
            with open(path, "rb") as file:
                content = file.read(IMAGE_BYTES + 1)
        except OSError:
            return None
        return picture(content)

    def image_path(self, run: str, map_file: str) -> str | None:
        """The file of a feature map, symbolic links resolved; None if it is missing or lies elsewhere."""
        if not _MAP_FILE.fullmatch(map_file):
            return None
        for prefix, root in self.roots:
            folder = _below(root, prefix, run)
            if folder is None:
                continue
            path = os.path.realpath(folder / map_file)
            if os.path.dirname(path) == os.path.realpath(folder / "media") and os.path.isfile(path):
                return path
        return None


def picture(content: Any) -> tuple[bytes, str] | None:
    """Bytes and their media type; None unless they begin as a PNG or a WebP and are of bearable length."""
    if isinstance(content, bytes) and len(content) <= IMAGE_BYTES:
        for magic, media_type in _IMAGE_TYPES:
            if magic.match(content):
                return content, media_type
    return None


def _named(part: str) -> tuple[str, str]:
    """One entry of --logdir_spec: ``name:path`` or a path, told apart as TensorBoard does."""
    if ":" in part and not part.startswith("/") and "://" not in part:
        name, _, path = part.partition(":")
        return name, path
    return "", part


def _below(root: Path, prefix: str, run: str) -> Path | None:
    """The folder of a run below a root, or None if it cannot lie there."""
    if prefix:
        if run != prefix and not run.startswith(f"{prefix}/"):
            return None
        run = run[len(prefix) + 1 :] or "."
    if ".." in Path(run).parts or Path(run).is_absolute():
        return None
    return root / run
