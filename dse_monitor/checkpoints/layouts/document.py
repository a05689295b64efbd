"""docs/layouts.md: every built-in layout in words, made from the table by ``python -m`` this module."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts import LAYOUTS, REGISTRY
from dse_monitor.checkpoints.layouts.layout import Layout


def document() -> str:
    """The text of docs/layouts.md.

    ``python -m dse_monitor.checkpoints.layouts.document > docs/layouts.md`` writes it; a test compares. What
    installed plugins add is left out.
    """
    lines = [
        "# Checkpoint layouts",
        "",
        "Generated from `LAYOUTS` in `dse_monitor/checkpoints/layouts/`; do not edit by hand.",
        "",
        "A location is `path/prefix`: the keys that lead to a state dict, a slash, and what its tensors'",
        'names begin with: `teacher/backbone.` is `checkpoint["teacher"]["backbone.*"]`.',
        "Names of wrapper modules (`module.`, `_orig_mod.`, FSDP's) may be there or not.",
        "The first network found is evaluated; `--encoder NAME` takes another one, `--layout NAME`",
        "another layout.",
        "",
        "To add a training code: one file and its line in `LAYOUTS`, or a plugin;",
        "see [adding.md](adding.md).",
    ]
    for heading, official in (("The sixteen methods of the paper", True), ("Other training codes", False)):
        lines += ["", f"## {heading}"]
        for layout in map(REGISTRY.load, LAYOUTS):
            if layout.official == official:
                lines += ["", *_section(layout)]
    return "\n".join(lines) + "\n"


def _section(layout: Layout) -> list[str]:
    lines = [f"### {layout.name}", ""]
    where = f", {layout.origin}" if layout.origin else ""
    lines.append(f"{layout.title}{where}. Files such as `{layout.example}`.")
    lines.append("")
    if layout.needs:
        lines.append(f"- recognised by: {', '.join(f'`{need}`' for need in layout.needs)}")
    if layout.lacks:
        lines.append(f"- and by the absence of: {', '.join(f'`{lack}`' for lack in layout.lacks)}")
    if layout.dialects:
        lines.append(f"- names of its tensors: {', '.join(layout.dialects)}")
    networks = [
        f"`{network.name}` at `{network.location}`"
        + (f" beside `{network.beside.removesuffix(' anywhere')}`" if network.beside else "")
        for network in layout.networks
    ]
    lines.append(f"- evaluated: {networks[0]} ({layout.evaluated})")
    if len(networks) > 1:
        lines.append(f"- otherwise: {', '.join(networks[1:])}")
    if layout.heads_by_width:
        heads = ", ".join(f"{width}: {count}" for width, count in layout.heads_by_width.items())
        lines.append(f"- attention heads by width: {heads}")
    if layout.mean:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (layout.mean, layout.std))
        lines.append(f"- images are normalised with mean {mean} and std {std}")
    if layout.norm_eps:
        lines.append(f"- epsilon of its LayerNorms: {layout.norm_eps:g}")
    counted = "counts from zero, one more is finished" if layout.epochs_from_field else "counts finished ones"
    lines.append(f"- stored epoch: {counted}")
    lines += [f"- mind: {trap}" for trap in layout.traps]
    return lines


if __name__ == "__main__":
    print(document(), end="")
