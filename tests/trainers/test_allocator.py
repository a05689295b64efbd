"""Memory on CPUs: the process keeps what it freed."""

import os
import subprocess
import sys

import pytest

from trainers import allocator

PAGES = 64 * 2**20 // os.sysconf("SC_PAGESIZE")  # of one tensor below
FAULTS = """
import resource
import torch
from trainers import allocator

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if {keep}:  # both, as a training does: malloc alone does not keep the heap on every start
    allocator.use_huge_pages()
    assert allocator.keep_freed_memory()
torch.ones(2**24)  # 64 MiB, mapped by the kernel if glibc may choose
before = faults()
torch.ones(2**24)
print(faults() - before)
"""


def faults_of_the_second_tensor(*, keep: bool) -> int:
    # small pages, and malloc as it comes: other tests may have trained in this process
    tuned = (*allocator._CHOSEN_OUTSIDE, "THP_MEM_ALLOC_ENABLE")
    environment = {k: v for k, v in os.environ.items() if k not in tuned}
    code = FAULTS.format(keep=keep)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc only")
def test_memory_of_a_freed_tensor_is_used_again_without_page_faults():
    assert faults_of_the_second_tensor(keep=False) >= PAGES  # what there would be to save
    assert faults_of_the_second_tensor(keep=True) < PAGES / 100


@pytest.mark.parametrize("name", allocator._CHOSEN_OUTSIDE)
def test_a_malloc_tuned_from_outside_is_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert not allocator.keep_freed_memory()


def test_huge_pages_are_asked_for_unless_forbidden_outside(monkeypatch):
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    allocator.use_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    allocator.use_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
