"""What most tests do to images: RGB, the centre, and mean and deviation of which nothing depends."""

from dse_monitor.preprocessing import Preprocessing, pair


def rgb(size, resize=None, **changes):
    """Preprocessing of a square side or (height, width), covered by another."""
    resize = None if resize is None else pair(resize)
    channels = changes.setdefault("channels", 3)
    usual = {"mean": (0.5,) * channels, "std": (0.2,) * channels}
    return Preprocessing(**{**usual, "image_size": pair(size), "resize": resize, **changes})
