"""Is there room on a GPU for a guest? Asked of nvidia-smi, before a context of our own takes any memory.

The training must never run out of memory because of us. Its allocator may grow at any step, so besides what
an evaluation needs a reserve stays free. Without nvidia-smi nothing is checked.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

CONTEXT_MIB = 700  # MiB of a CUDA context with torch loaded, typical of 12.x drivers; chosen by us
FORWARD_MIB = 2_500  # MiB of a bfloat16 ViT-L forward pass at the default micro-batch; chosen by us
RESERVE_MIB = 2_048  # MiB left to others at least; chosen by us
RESERVE_SHARE = 0.10  # of the GPU's memory left to others at least; chosen by us
ASK_SECONDS = 20.0  # nvidia-smi may hang on a lost GPU

_GPU_QUERY = ("--query-gpu=index,uuid,memory.free,memory.total,compute_mode", "--format=csv,noheader,nounits")
_PROCESS_QUERY = ("--query-compute-apps=gpu_uuid,pid", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Gpu:
    """One GPU as this process may see it.

    Attributes:
        index: torch's index.
        free_mib: free memory.
        total_mib: all memory.
        guests: other processes computing on it.
        exclusive: takes one process only.
    """

    index: int
    free_mib: int
    total_mib: int
    guests: int = 0
    exclusive: bool = False

    @property
    def reserve_mib(self) -> int:
        """What stays free for others; nothing when nobody else is there."""
        return max(RESERVE_MIB, int(RESERVE_SHARE * self.total_mib)) if self.guests else 0

    @property
    def has_room(self) -> bool:
        """Whether an evaluation fits."""
        if self.guests and self.exclusive:
            return False
        return self.free_mib >= CONTEXT_MIB + FORWARD_MIB + self.reserve_mib


@dataclass(frozen=True)
class Place:
    """Where to evaluate.

    Attributes:
        device: for torch; empty when there is no room now.
        words: for the console, or the reason why there is no room.
    """

    device: str
    words: str


def place(device: str, gpus: list[Gpu] | None, *, cpu_fallback: bool = False) -> Place:
    """Choose where to evaluate.

    Args:
        device: what the user asked for: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:INDEX``.
        gpus: what :func:`gpus` found; None when it cannot be told.
        cpu_fallback: rather use the CPU than wait for room.
    """
    if gpus is None or device in ("cpu", "mps") or (device == "auto" and not gpus):
        return Place(device, device)
    if device == "auto":
        chosen = max(gpus, key=lambda gpu: (gpu.guests == 0, gpu.free_mib))
    else:
        index = int(device.partition(":")[2] or 0)
        matches = [gpu for gpu in gpus if gpu.index == index]
        if not matches:
            return Place(device, device)  # torch says what is wrong, and what there is
        chosen = matches[0]
    keeping = f", keeping {chosen.reserve_mib / 1024:.0f} GB for others" if chosen.guests else ""
    if chosen.has_room:
        words = f"cuda:{chosen.index}   {chosen.free_mib / 1024:.0f} GB free{keeping}"
        return Place(f"cuda:{chosen.index}", words)
    reason = (
        f"cuda:{chosen.index} has {chosen.free_mib / 1024:.1f} GB free, "
        f"{(CONTEXT_MIB + FORWARD_MIB) / 1024:.1f} GB are needed{keeping}"
    )
    if chosen.guests and chosen.exclusive:
        reason = f"cuda:{chosen.index} is in exclusive mode and in use"
    return Place("cpu", f"cpu   ({reason})") if cpu_fallback else Place("", reason)


def gpus(ask: Callable[..., str | None] | None = None, visible: str | None = None) -> list[Gpu] | None:
    """The GPUs torch would see, in its order; None when nvidia-smi is absent or does not answer.

    Args:
        ask: runs nvidia-smi with arguments; returns its output or None.
        visible: value of CUDA_VISIBLE_DEVICES; None takes it from the environment.
    """
    ask = ask or _nvidia_smi
    table, processes = ask(*_GPU_QUERY), ask(*_PROCESS_QUERY)
    if table is None:
        return None
    guests: dict[str, int] = {}
    for line in (processes or "").splitlines():
        uuid, _, pid = line.partition(",")
        if pid.strip().isdigit() and int(pid) != os.getpid():
            guests[uuid.strip()] = guests.get(uuid.strip(), 0) + 1
    found: dict[str, Gpu] = {}
    for line in table.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 5 or not (fields[2].isdigit() and fields[3].isdigit()):
            continue  # a lost GPU reports words instead of numbers
        index, uuid, free, total, mode = fields
        found[uuid] = Gpu(int(index), int(free), int(total), guests.get(uuid, 0), "Exclusive" in mode)
    return _as_seen(found, os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible)


def _as_seen(found: dict[str, Gpu], visible: str | None) -> list[Gpu]:
    """Renumber the machine's GPUs as CUDA_VISIBLE_DEVICES makes torch number them."""
    if visible is None:
        return list(found.values())
    seen: list[Gpu] = []
    for token in re.split(r"\s*,\s*", visible.strip()):
        matches = [
            gpu
            for uuid, gpu in found.items()
            if token == str(gpu.index) or (token and uuid.startswith(token))
        ]
        if len(matches) != 1:
            break  # CUDA stops at the first name it does not know
        gpu = matches[0]
        seen.append(Gpu(len(seen), gpu.free_mib, gpu.total_mib, gpu.guests, gpu.exclusive))
    return seen


def _nvidia_smi(*arguments: str) -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=ASK_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
