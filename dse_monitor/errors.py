"""Every error a user can meet, in one tree. Each says what was found, what was expected and what to do.

DSEError
├── CheckpointError          a file is no checkpoint we can read
│   ├── IncompleteCheckpoint     cut short, or still being written
│   ├── CorruptCheckpoint        whole, but its bytes contradict themselves
│   ├── UnsafeCheckpoint         asks for more than data: refused, nothing was executed
│   ├── UnknownLayout            readable, but no encoder was recognised in it
│   └── AmbiguousArchitecture    several networks fit; the user must say which
├── ImagesError              the held-out images cannot be used
├── FeatureError             the network's output cannot be measured
├── DeviceError              the device asked for is missing or full
├── ConfigurationError       a configuration file, or options found elsewhere than on the command line
├── RunError                 the run's folder, ledger or lock stands in the way
├── OutputError              results cannot be written
├── NetworkError             the network of one's own (--network) cannot be used
└── PluginError              what another package adds was asked for and cannot be used

Wrong arguments from a programmer are ValueError and TypeError, as everywhere. The metric can be lifted into
other projects and therefore has an error of its own, `NonFiniteFeatures` (a ValueError), also found here.
"""

from __future__ import annotations

from dse_monitor.metric.components import NonFiniteFeatures as NonFiniteFeatures


class DSEError(Exception):
    """Root of the tree; the command line prints its text in one line and ends with a non-zero code."""


class CheckpointError(DSEError):
    """A file is no checkpoint that can be read."""


class IncompleteCheckpoint(CheckpointError):
    """Cut short, or still being written."""


class CorruptCheckpoint(CheckpointError):
    """Whole, but its bytes contradict themselves (checksums, sizes, offsets)."""


class UnsafeCheckpoint(CheckpointError):
    """Asks for more than data; refused. Nothing of the file was executed."""


class UnknownLayout(CheckpointError):
    """Readable, but no encoder was recognised in it."""


class AmbiguousArchitecture(CheckpointError):
    """Several networks fit the tensors, and the wrong one would load silently."""


class ImagesError(DSEError):
    """The held-out images cannot be used."""


class FeatureError(DSEError):
    """The network's output cannot be measured."""


class DeviceError(DSEError):
    """The device asked for is missing or has no room."""


class ConfigurationError(DSEError):
    """A configuration file cannot be used, or an option that is needed is found nowhere."""


class RunError(DSEError):
    """The run's folder, ledger or lock stands in the way."""


class OutputError(DSEError):
    """Results cannot be written."""


class NetworkError(DSEError):
    """The network of one's own cannot be found, built or run; the checkpoint is not to blame."""


class PluginError(DSEError):
    """What another package adds was asked for by name and cannot be used."""


def one_line(error: BaseException | str) -> str:
    """An error or its text in one line: runs of white space as one space, no control characters."""
    try:
        text = str(error)
    except Exception:  # of somebody else's class
        text = f"an error of class {type(error).__name__} without a text"
    return "".join(c for c in " ".join(text.split()) if c.isprintable())
