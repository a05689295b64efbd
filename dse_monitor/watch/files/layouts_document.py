"""docs/run_layouts.md: what is a run, with an example of each layout; made by ``python -m`` this module."""

from __future__ import annotations

from dse_monitor.watch.files.layouts import LAYOUTS, RunLayout


def document() -> str:
    """The text of docs/run_layouts.md.

    ``python -m dse_monitor.watch.files.layouts_document > docs/run_layouts.md`` writes it; a test compares.
    """
    lines = [
        "# What is a run",
        "",
        "Generated from `LAYOUTS` in `dse_monitor/watch/files/layouts.py`; do not edit by hand.",
        "",
        "The training that wrote the files is one run, however its checkpoints are foldered, and two",
        "trainings are never one. What lies in a folder beats its name. `dse-monitor runs PATH` lists what",
        "is found and why; `--run GLOB` chooses among it, `--as-one` takes all below PATH for one run,",
        "`--as-many` takes each folder that holds checkpoints for a run of its own.",
        "[watching.md](watching.md) says how folders are searched.",
        "",
        "Each example is the folder given to `dse-monitor watch`; a test makes it and compares.",
        "[examples/layouts](../examples/layouts) has a script for each common writer, which writes a real",
        "run with the writer's own saver; those named `..._calls.py` repeat its calls and are not the writer",
        "run. Tests watch what each of them writes.",
    ]
    for layout in LAYOUTS:
        lines += ["", *_section(layout)]
    return "\n".join(lines) + "\n"


def _section(layout: RunLayout) -> list[str]:
    found = []
    for run, count in layout.runs.items():
        name = "the folder given" if run == "." else f"`{run}`"
        found.append(f"{name} ({count} checkpoint{'s' * (count > 1)})")
    number = "One run" if len(found) == 1 else f"{len(found)} runs"
    return [
        f"## {layout.name[0].upper()}{layout.name[1:]}",
        "",
        f"Written by {layout.writer}.",
        "",
        "```",
        *layout.tree,
        "```",
        "",
        f"{number}: {', '.join(found)}. Rule: {layout.why}.",
    ]


if __name__ == "__main__":
    print(document(), end="")
