"""Building a network of somebody else's library: as a template without numbers, or for real."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints.families.network import NotThisNetwork
from dse_monitor.checkpoints.families.statedicts import Shape
from dse_monitor.checkpoints.meta import without_storage
from dse_monitor.checkpoints.named.options import one_line, unexpected

if TYPE_CHECKING:
    from torch import nn

# Numbers in buffers that a network computes for itself: rotary tables, relative indices. Ours: 1 GiB.
MOST_COMPUTED = 2**28
# Buffers that training fills: a network whose file lacks them is another network.
_LEARNED = ("running_mean", "running_var")
_COUNTERS = ("num_batches_tracked",)


@dataclass(frozen=True)
class Template:
    """A network that has names and shapes and no numbers.

    Attributes:
        make: builds the module.
        module: on the device ``meta``, in evaluation mode.
        tensors: names and shapes of its state dict.
        buffers: those that are no parameters.
        computed: those that need not be in a file, as the module makes them itself.
    """

    make: Callable[[], Any]
    module: Any
    tensors: dict[str, Shape]
    buffers: frozenset[str]
    computed: frozenset[str]

    @property
    def required(self) -> list[str]:
        """Tensors that a file must have."""
        return [name for name in self.tensors if name not in self.computed and not name.endswith(_COUNTERS)]

    def misfits(self, shapes: dict[str, Shape]) -> list[str]:
        """Required tensors that are not there, or in another shape."""
        return [name for name in self.required if shapes.get(name) != self.tensors[name]]


def template(make: Callable[[], nn.Module], what: str, makers: Sequence[Callable[..., Any]] = ()) -> Template:
    """What `make` builds, on the device ``meta``.

    Args:
        make: builds the module.
        what: the network in words, for errors.
        makers: functions whose arguments it takes, to find what a misspelled one was meant to be.

    Raises:
        NotThisNetwork: it cannot be built; says why in one line.
    """
    with quiet(), refused(what, makers):
        module = without_storage(make).to("meta")
    module = module.eval().requires_grad_(False)
    every = dict(module.named_buffers())
    if sum(math.prod(buffer.shape) for buffer in every.values()) > MOST_COMPUTED:
        raise NotThisNetwork(f"{what} computes tables of more than {MOST_COMPUTED:.0e} numbers")
    tensors = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    buffers = frozenset(name for name in every if name in tensors)
    computed = frozenset(name for name in buffers if not name.endswith((*_LEARNED, *_COUNTERS)))
    return Template(make, module, tensors, buffers, computed)


@contextlib.contextmanager
def refused(what: str, makers: Sequence[Callable[..., Any]] = ()) -> Iterator[None]:
    """Whatever a library raises meanwhile, as NotThisNetwork."""
    try:
        yield
    except NotThisNetwork:
        raise
    except TypeError as error:
        raise NotThisNetwork(f"{what} cannot be built: {unexpected(error, makers)}") from error
    except Exception as error:
        raise NotThisNetwork(f"{what} cannot be built: {one_line(error)}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Warnings and messages of a library about networks that it builds are not ours to show."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def output_of(made: Template, forward: Callable[[Any, Any], Any], size: Sequence[int]) -> Any:
    """What a template's forward pass returns for one image [1, C, H, W], without numbers.

    Raises:
        NotThisNetwork: it takes no image of that size.
    """
    import torch

    with quiet(), torch.no_grad(), refused_forward(size):
        try:
            return forward(made.module, torch.empty(1, *size, device="meta"))
        except (NotImplementedError, RuntimeError) as error:  # perhaps because it looks at numbers
            if "meta" not in str(error).lower():
                raise
            return forward(made.make().eval(), torch.zeros(1, *size))


@contextlib.contextmanager
def refused_forward(size: Sequence[int]) -> Iterator[None]:
    """Whatever a network raises for an image of this size, as NotThisNetwork."""
    try:
        yield
    except NotThisNetwork:
        raise
    except Exception as error:
        height, width = size[-2:]
        raise NotThisNetwork(f"it takes no images of {height} x {width} pixels: {one_line(error)}") from error
