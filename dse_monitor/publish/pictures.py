"""Feature maps as event data, so that they are seen where only the event files are.

Maps are files beside the run, one per checkpoint. TensorBoard holds event data in memory and its slow loader
reads 4 MB a second, so a long run's maps are thinned here: all of the first 128, then 64 for each doubling of
the run. 1,000 checkpoints make 317 maps of about 5 kB, 10,000 make 527; none is missing further from one that
is there than 1/64 of the run before it.
"""

from __future__ import annotations

from pathlib import Path

DENSE = 128  # maps of which none is left out; ours
PICTURE_BYTES = 256 << 10  # a larger file stays beside the run; 56 x 56 tokens of six images take 100 kB
IMAGES = "images"  # the example images, where a map has the sequence number of its evaluation
ORIGINALS = "media/images.webp"  # the images themselves, below the output folder; as in maps.py


def is_published(count: int) -> bool:
    """Whether a map is part of the event data, by how many maps there were before it."""
    return count % (1 << (count // DENSE).bit_length()) == 0


def read_picture(folder: Path, file: str) -> bytes:
    """A picture below the output folder; empty when it is missing or too large."""
    try:
        content = (folder / file).read_bytes()
    except OSError:
        return b""
    return content if len(content) <= PICTURE_BYTES else b""
