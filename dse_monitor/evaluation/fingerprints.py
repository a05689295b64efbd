"""The file beside cached pixels that says which images they are; reading it decodes nothing."""

from __future__ import annotations

import json
from pathlib import Path

from dse_monitor import atomic

LENGTH = 16  # hexadecimal digits of a fingerprint


def write(pixels: Path, images: int, sha256: str) -> None:
    """Say how many images a file of pixels holds, and the SHA-256 of what makes them what they are."""
    text = json.dumps({"images": images, "sha256": sha256}, indent=1)
    atomic.write_bytes(pixels.with_suffix(".json"), text.encode())


def read(pixels: Path) -> tuple[int, str]:
    """The inverse of `write`.

    Raises:
        OSError: there is no such file.
        ValueError, KeyError, TypeError: it is damaged.
    """
    data = json.loads(pixels.with_suffix(".json").read_bytes())
    return data["images"], data["sha256"]


def cached(cache: Path) -> frozenset[str]:
    """Fingerprints of the images whose pixels lie in a cache folder; their bytes are not looked at."""
    found = set()
    for pixels in cache.glob("pixels-*"):
        if pixels.suffix != ".json":
            try:
                found.add(read(pixels)[1][:LENGTH])
            except (OSError, ValueError, KeyError, TypeError):  # they are decoded again before they are used
                continue
    return frozenset(found)
