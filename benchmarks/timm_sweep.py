"""The smallest network of each class of timm: does it open, what does it give out, is its last layer that?

``python benchmarks/timm_sweep.py`` builds every model of timm without numbers to find the smallest of each
class, then measures each on one image: about an hour on one core. It writes
dse_monitor/checkpoints/named/classes.json, from which docs/networks.md is made. ``--classes Hiera
FocalNet`` measures these alone and keeps the rest.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import timm
import torch

from dse_monitor.checkpoints.families.network import Hints, NotThisNetwork
from dse_monitor.checkpoints.meta import without_storage
from dse_monitor.checkpoints.named import timm_networks
from dse_monitor.checkpoints.named.document import CLASSES
from dse_monitor.checkpoints.named.readers import LAST_STAGE

SAME = 1e-4  # of the standard deviation of the tokens


def smallest() -> dict[str, str]:
    """The model with the fewest parameters of each class."""
    found: dict[str, tuple[int, str]] = {}
    for name in timm.list_models():
        module = without_storage(lambda name=name: timm.create_model(name, pretrained=False))
        size = sum(parameter.numel() for parameter in module.parameters())
        found[type(module).__name__] = min(found.get(type(module).__name__, (size, name)), (size, name))
    return {kind: name for kind, (_, name) in sorted(found.items())}


def measured(name: str) -> dict[str, Any]:
    """One network on one image: how its output is read, and whether its last layer by number is the same."""
    named = timm_networks.Named(arch=name, source="--arch", by_layer=True)
    try:
        network = timm_networks.recognise(named, timm_networks.plain(named).tensors, Hints())
    except NotThisNetwork as error:
        return {"example": name, "refused": str(error)}
    reading = network.tokens.__self__  # type: ignore[attr-defined]
    row = {"example": name, "output": reading.kind, "prefix": reading.prefix, "layers": network.layers}
    torch.manual_seed(0)
    module, images = network.build(), torch.randn(1, network.channels, *network.image_size)
    if reading.kind == LAST_STAGE:
        return row
    with torch.no_grad():
        last = network.tokens(module, images, None).dense
        if last.shape[1:] != (network.num_tokens, network.width):
            row["refused"] = (
                f"{list(last.shape)} tokens where {network.num_tokens} x {network.width} were expected"
            )
        if network.layers:
            numbered = network.tokens(module, images, network.layers).dense
            row["last"] = numbered.shape == last.shape and bool(
                (numbered - last).abs().max() <= SAME * last.std()
            )
    return row


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--classes", nargs="*", help="only these; the smallest models known already are taken"
    )
    chosen = parser.parse_args().classes
    path = Path(CLASSES)
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    names = {kind: table[kind]["example"] for kind in chosen} if chosen else smallest()
    warnings.simplefilter("ignore")
    for kind, name in names.items():
        table[kind] = measured(name)
        print(kind, table[kind], flush=True)
        path.write_text(json.dumps(dict(sorted(table.items())), indent=1) + "\n", encoding="utf-8")
    opened = sum("refused" not in row for row in table.values())
    print(f"{opened} of {len(table)} classes open")


if __name__ == "__main__":
    main()
