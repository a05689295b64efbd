"""docs/methods.md: one table of the methods, made from their files by ``python -m`` this module.

A row is read where it stays true: name, paper and reference in the module's docstring, the tokens in the
``Dense:`` sentence of ``forward``'s, defaults in the recipe, departures in ``Method.differences``.
"""

from __future__ import annotations

import inspect
import re
import sys

import torch

from dse_monitor.trainers.method import Method, Plan, Recipe
from dse_monitor.trainers.methods import METHODS, load

INTRODUCTION = """# Methods

Generated from the method files by `python -m dse_monitor.trainers.methods_table > docs/methods.md`; do not
edit by hand.

Train one with `dse-train NAME --data DIR --out RUN`; `dse-train NAME --help` lists every number of its
recipe. The defaults below are the authors' (ImageNet, many GPUs); `--preset tiny` is for 64-px images on a
CPU: a network of a few blocks, batches of 32 or 64, ten epochs or twelve, other learning rates.

In all methods

- loss terms, heads, matchings, masks, schedules and optimiser rules give the numbers of the authors' code
  (golden files in `tests/data/golden/`), but random draws are others: a view depends on seed, epoch and image
  alone;
- the encoder is timm's network under timm's names;
- half precision is bfloat16 where the GPU has it (most authors: float16 with a scaler, here
  `--precision float16`), and losses are computed in float32;
- the last incomplete batch of an epoch is dropped (the authors of Barlow Twins, VICReg and VICRegL keep it);
- the DSE term of `--dse-weight`, off by default, is none of the authors'.

*Other presets* are further recipes of the authors, for `--preset`. *lr* is what `--lr` says and, in brackets,
the highest value that the optimiser sees at the default batch. *Tokens* are those that the DSE term sees in
training: B images, N tokens, D wide. *Measured* is the network that the monitor evaluates.
"""
COLUMNS = (
    "method",
    "paper",
    "reference code",
    "measured",
    "tokens",
    "backbone",
    "batch",
    "epochs",
    "lr",
    "optimiser",
    "other presets",
    "what differs from that code, and why",
)
STEPS_PER_EPOCH = (
    100  # of the run whose learning rates are looked at; any number that holds the warmup will do
)


def document() -> str:
    """The text of docs/methods.md.

    Raises:
        ValueError: a method's file lacks something that the table wants; the message says what.
    """
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(row(name) for name in METHODS)]
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return INTRODUCTION + "\n" + "\n".join(lines) + "\n"


def row(name: str) -> list[str]:
    """The cells of one method, in the order of ``COLUMNS``; raises as :func:`document`."""
    method_type = load(name)
    about = _flat(sys.modules[method_type.__module__].__doc__)
    title = _found(r"^([^:]+): ", about, name, "a docstring that begins with 'NAME: '")
    paper = _found(r"arXiv (\d{4}\.\d{5})", about, name, "'arXiv NUMBER' in its docstring")
    code = _found(
        r"Reference: ([\w.-]+/[\w.-]+)\b", about, name, "'Reference: OWNER/REPOSITORY' in its docstring"
    )
    tokens = _found(
        r"Dense: (.+)\.", _flat(method_type.forward.__doc__), name, "'Dense: ...' in forward's docstring"
    )
    differences = getattr(method_type, "differences", "")
    if not differences:
        raise ValueError(
            f"{name}: `differences` is not set; say where it departs from the authors' code, and why"
        )
    recipe: Recipe = method_type.recipe_type()  # pyright: ignore[reportCallIssue]
    cells = [
        f"{title} (`{name}`)",
        f"[{paper}](https://arxiv.org/abs/{paper})",
        f"[{code}](https://github.com/{code})",
        "teacher" if method_type.evaluated.startswith("teacher") else "student",
        tokens,
        f"`{recipe.backbone}`",
        str(recipe.batch_size),
        str(recipe.epochs),
        f"{recipe.lr:g} ({peak_lr(method_type, recipe):g})",
        recipe.optimizer,
        "; ".join(other_presets(type(recipe))) or "-",
        differences,
    ]
    return [cell.replace("|", "\\|") for cell in cells]


def other_presets(recipe_type: type[Recipe]) -> list[str]:
    """Each further recipe by its name and the first line of its docstring."""
    names = [name for name in recipe_type.presets if name != "tiny"]
    firsts = [inspect.cleandoc(getattr(recipe_type, name).__doc__).splitlines()[0] for name in names]
    return [f"`{name}`: {first.rstrip('.')}" for name, first in zip(names, firsts, strict=True)]


def peak_lr(method_type: type[Method], recipe: Recipe) -> float:
    """The highest learning rate of a run by the recipe. The networks are built without memory."""
    plan = Plan(recipe.epochs, STEPS_PER_EPOCH, recipe.batch_size, STEPS_PER_EPOCH * recipe.batch_size)
    with torch.device("meta"):
        return float(method_type(recipe).schedules(plan)["lr"].max())


def _flat(docstring: str | None) -> str:
    return " ".join(inspect.cleandoc(docstring or "").split())


def _found(pattern: str, text: str, name: str, wanted: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"{name}: the table wants {wanted}")
    return match[1]


if __name__ == "__main__":
    print(document(), end="")
