"""Memory on CPUs: large tensors lie in large pages, and what is freed can be used again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dse_monitor.trainers.engine import allocator

PAGES = 64 * 2**20 // os.sysconf("SC_PAGESIZE")  # of one tensor below
ASKED_FOR = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CODE = """
import resource
import torch
from dse_monitor.trainers.engine import allocator

if {huge}:
    allocator.use_huge_pages()
kept = []
for number in range(40):
    before = resource.getrusage(resource.RUSAGE_SELF)
    large = torch.ones(2**24)  # 64 MiB
    after = resource.getrusage(resource.RUSAGE_SELF)
    kept.append(torch.ones(number + 1))  # between two large ones, as a log keeps its scalars
    del large
    if number == 3:
        early = after.ru_maxrss
print(after.ru_minflt - before.ru_minflt, after.ru_maxrss - early)
"""


def faults_and_growth(*, huge: bool) -> tuple[int, int]:
    """Page faults of the last of forty tensors that come and go, and KiB by which memory grew over them."""
    # other tests may have trained in this process
    environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    code = CODE.format(huge=huge)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    faults, growth = done.stdout.split()
    return int(faults), int(growth)


@pytest.mark.skipif(
    not ASKED_FOR.exists() or "[never]" in ASKED_FOR.read_text(), reason="this kernel gives no huge pages"
)
def test_huge_pages_save_nearly_all_page_faults():
    assert faults_and_growth(huge=False)[0] >= PAGES  # what there would be to save
    assert faults_and_growth(huge=True)[0] < PAGES / 10


def test_memory_does_not_grow_with_tensors_that_come_and_go():
    assert faults_and_growth(huge=True)[1] < 64 * 1024  # KiB, one tensor


def test_huge_pages_are_asked_for_unless_forbidden_outside(monkeypatch):
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    allocator.use_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    allocator.use_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
