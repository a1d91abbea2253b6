"""The allocator setting: large blocks come back without page faults. In processes of their own."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import resource, sys, torch
from kgrec_fast.training.memory import keep_freed_memory
taken = keep_freed_memory() if sys.argv[1] == "keep" else True
# Small blocks take the ends that alignment cuts off the first ones, which are then a little too
# short to be handed out again: some rounds pass until all of these ends are taken.
for _ in range(20):
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(1 << 24)
print(int(taken), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(mode: str) -> tuple[int, int]:
    command = [sys.executable, "-c", PROGRAM, mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken, faults = map(int, done.stdout.split())
    return taken, faults


def test_freed_memory_is_kept() -> None:
    pages = 10 * (4 << 24) // 4096
    taken, faults = run("keep")
    assert taken == 1
    assert faults < pages // 20
    assert run("default")[1] > 10 * max(faults, 1)


FLAGS_OF_HEAP = """
import re, torch
from kgrec_fast.training.memory import keep_freed_memory
keep_freed_memory()
keep_freed_memory()
x = torch.ones(1 << 24)
area = re.compile("^([0-9a-f]+)-([0-9a-f]+) rw-p .*?^VmFlags: (.*?)$", re.DOTALL | re.MULTILINE)
for begin, end, flags in area.findall(open("/proc/self/smaps").read()):
    if int(begin, 16) <= x.data_ptr() < int(end, 16):
        print(flags)
"""


def test_huge_pages_are_asked_for() -> None:
    command = [sys.executable, "-c", FLAGS_OF_HEAP]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    offered = Path("/sys/kernel/mm/transparent_hugepage").exists()
    assert ("hg" in done.stdout.split()) == offered


SIZE_OF_HEAP = """
import resource, sys
from kgrec_fast.training.memory import keep_freed_memory
limit = resource.RLIM_INFINITY if sys.argv[1] == "free" else 1 << 40
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
keep_freed_memory()
begin, end = next(x for x in open("/proc/self/maps") if "[heap]" in x).split()[0].split("-")
print(int(end, 16) - int(begin, 16))
"""


def test_a_process_of_limited_addresses_keeps_them() -> None:
    def heap(mode: str) -> int:
        command = [sys.executable, "-c", SIZE_OF_HEAP, mode]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    free = resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    strict = Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    assert (heap("free") > 2**30) == (free and not strict)
    assert heap("limited") < 2**30
