"""Named tensors inside a checkpoint's tree: where they are, and their names without wrapper modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints.reading.contents import Opaque, module_state

if TYPE_CHECKING:
    from dse_monitor.checkpoints.archive import TensorRef

Shape = tuple[int, ...]

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
    """

    path: tuple[str, ...]
    tensors: Mapping[str, TensorRef]
    names: Mapping[str, str]

    def below(self, prefix: str) -> dict[str, Shape]:
        """Shapes of the tensors whose name starts with `prefix`, by the rest of the name."""
        cut = len(prefix)
        return {name[cut:]: tuple(ref.shape) for name, ref in self.tensors.items() if name.startswith(prefix)}

    def prefix_in_file(self, prefix: str, rest: str) -> str:
        """The prefix as the file spells it, wrappers included, read off the tensor `prefix + rest`."""
        name = self.names[prefix + rest]
        return name[: len(name) - len(rest)] if name.endswith(rest) else prefix


def unwrapped(name: str) -> str:
    """`name` without the wrapper modules in it: ``module.a._orig_mod.b`` becomes ``a.b``."""
    if not any(wrapper in name for wrapper in WRAPPERS):
        return name
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def is_tensor(value: Any) -> bool:
    """Whether a value of the tree stands for a tensor."""
    return hasattr(value, "dtype") and hasattr(value, "shape") and hasattr(value, "nbytes")


def state_dicts(tree: Any) -> list[StateDict]:
    """Every dictionary with named tensors in the tree, outermost first, in the file's order."""
    return [_state_dict(path, node) for path, node in _dicts(tree) if _has_tensors(node)]


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


def _state_dict(path: tuple[str, ...], node: Mapping[Any, Any]) -> StateDict:
    found = {key: value for key, value in node.items() if isinstance(key, str) and is_tensor(value)}
    clean = {key: unwrapped(key) for key in found}
    if len(set(clean.values())) < len(clean):  # a module really is called "module": leave the names alone
        clean = {key: key for key in found}
    return StateDict(
        path=path,
        tensors={clean[key]: ref for key, ref in found.items()},
        names={clean[key]: key for key in found},
    )
