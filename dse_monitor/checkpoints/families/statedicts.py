"""Named tensors inside a checkpoint's tree: where they are, and their names without wrapper modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints.reading.contents import Opaque, module_state
from dse_monitor.checkpoints.wrapped import Folded, Folding, fold

if TYPE_CHECKING:
    from dse_monitor.checkpoints.archive import TensorRef

Shape = tuple[int, ...]
MAX_NAME = 1024  # characters of a tensor's name; ours: every dotted beginning of it is looked at

# Modules that only wrap another one and add their name to every key below them, wherever they stand.
WRAPPERS = frozenset(
    {
        "module",  # DataParallel, DistributedDataParallel, DeepSpeed, averaged models
        "_orig_mod",  # torch.compile
        "_fsdp_wrapped_module",  # FSDP
        "_fpw_module",  # FSDP before torch 2.0
        "_checkpoint_wrapped_module",  # activation checkpointing
        "_forward_module",  # Lightning strategies
    }
)


@dataclass(frozen=True)
class StateDict:
    """One dictionary of named tensors.

    Attributes:
        path: keys that lead to it from the top of the file.
        tensors: reference of each tensor by its name without wrappers.
        names: name in the file of each tensor, by its name without wrappers.
        folding: weights that are stored as something else (weight norm, LoRA, quantised).
    """

    path: tuple[str, ...]
    tensors: Mapping[str, TensorRef]
    names: Mapping[str, str]
    folding: Folding = field(default_factory=Folding)

    @cached_property
    def weights(self) -> Mapping[str, Folded | TensorRef]:
        """The network's own tensors by name, those that are computed among them, in the file's order."""
        if not self.folding.folded:
            return self.tensors
        consumed, folded = self.folding.consumed, self.folding.folded
        plain = {n: ref for n, ref in self.tensors.items() if n not in consumed and n not in folded}
        order = {name: place for place, name in enumerate(self.tensors)}
        last = len(order)
        places = {name: order.get(next(iter(made.sources), ""), last) for name, made in folded.items()}
        both = {**plain, **folded}
        return {name: both[name] for name in sorted(both, key=lambda n: places.get(n, order.get(n, last)))}

    def below(self, prefix: str) -> dict[str, Shape]:
        """Shapes of the network's tensors whose name starts with `prefix`, by the rest of the name."""
        cut = len(prefix)
        return {name[cut:]: tuple(one.shape) for name, one in self.weights.items() if name.startswith(prefix)}

    def prefix_in_file(self, prefix: str, rest: str) -> str:
        """The prefix as the file spells it, wrappers included, read off the tensor `prefix + rest`."""
        made = self.folding.folded.get(prefix + rest)
        if made is not None:
            source = next((each for each in made.sources if each.startswith(prefix)), "")
            rest = source[len(prefix) :]
        name = self.names.get(prefix + rest, "")
        return name[: len(name) - len(rest)] if rest and name.endswith(rest) else prefix


def unwrapped(name: str) -> str:
    """`name` without the wrapper modules in it: ``module.a._orig_mod.b`` becomes ``a.b``."""
    if not any(wrapper in name for wrapper in WRAPPERS):
        return name
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def is_tensor(value: Any) -> bool:
    """Whether a value of the tree stands for a tensor."""
    return hasattr(value, "dtype") and hasattr(value, "shape") and hasattr(value, "nbytes")


def state_dicts(tree: Any, adapter: Any = None) -> list[StateDict]:
    """Every dictionary with named tensors in the tree, outermost first, in the file's order.

    Args:
        tree: an archive's contents.
        adapter: content of peft's adapter_config.json beside the file; without it LoRA is refused.
    """
    return [_state_dict(path, node, adapter) for path, node in _dicts(tree) if _has_tensors(node)]


def _has_tensors(node: Mapping[Any, Any]) -> bool:
    return any(isinstance(key, str) and is_tensor(value) for key, value in node.items())


def _dicts(tree: Any) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Every dictionary with its path, without recursion: the tree of a foreign file may be deep or cyclic."""
    seen: set[int] = set()
    queue: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    while queue:
        path, node = queue.pop(0)
        if isinstance(node, Opaque):  # a whole module that was pickled instead of its state dict
            yield path, module_state(node)
            continue
        if not isinstance(node, (dict, list, tuple)) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, dict):
            yield path, node
            children = node.items()
        else:
            children = enumerate(node)
        queue.extend(
            ((*path, str(key)), child)
            for key, child in children
            if isinstance(child, (dict, list, tuple, Opaque))
        )


def _state_dict(path: tuple[str, ...], node: Mapping[Any, Any], adapter: Any) -> StateDict:
    named = {key: value for key, value in node.items() if isinstance(key, str) and len(key) <= MAX_NAME}
    found = {key: value for key, value in named.items() if is_tensor(value)}
    unread = {
        unwrapped(key): value.note or f"not built: a tensor subclass {value.name}"
        for key, value in named.items()
        if isinstance(value, Opaque) and (value.note.startswith("not built") or _is_subclass(value))
    }
    clean = {key: unwrapped(key) for key in found}
    if len(set(clean.values())) < len(clean):  # a module really is called "module": leave the names alone
        clean = {key: key for key in found}
    tensors = {clean[key]: ref for key, ref in found.items()}
    return StateDict(
        path=path,
        tensors=tensors,
        names={clean[key]: key for key in found},
        folding=fold(tensors, unread, adapter),
    )


def _is_subclass(value: Opaque) -> bool:
    """Whether an object is a tensor of a library that replaces torch's."""
    return value.name.startswith(("torchao.", "torch.distributed._shard.", "torch.distributed.tensor."))
