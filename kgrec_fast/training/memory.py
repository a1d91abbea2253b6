"""Keeps freed memory in the process, since a training step asks for the same sizes each time."""

from __future__ import annotations

import ctypes
import mmap
import platform
from pathlib import Path

# Parameters of glibc's mallopt, and what they are set to.
_TRIM_THRESHOLD, _NEVER = -1, -1
_MMAP_THRESHOLD, _LARGEST = -3, 2**30
# What the heap is extended by: blocks that are still taken from it, and their number.
_BLOCK, _BLOCKS = _LARGEST - 2**12, 4
_STRICT = 2  # of the kernel's policies: every address counts as memory


def keep_freed_memory() -> bool:
    """Tells glibc's allocator to hand blocks of up to 1 GiB out again instead of unmapping them.

    Mapped anew, every page of a large tensor costs a page fault when it is first written: some
    4,000 a step on ml-100k. The setting holds for the whole process and is therefore for programs
    to choose, not for libraries: the command line does.

    Then the heap is extended by up to 4 GiB of addresses, and Linux is asked to back it with huge
    pages as these are first written: a gather of random rows looks up the page of each, and a
    processor remembers some thousand pages at most. What is resident already keeps its small pages,
    and what lies beyond gets small ones: call this at the start of a program, and again when a
    large model was built. Where the addresses of a process are limited (``ulimit -v``, strict
    overcommit), the heap is left as large as it is.

    Returns:
        Whether the allocator is glibc's and took the setting. Huge pages are used where the system
        offers them.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _NEVER))
    if not all(libc.mallopt(name, value) == 1 for name, value in settings):
        return False
    _use_huge_pages(libc)
    return True


def _use_huge_pages(libc: ctypes.CDLL) -> None:
    """Asks for huge pages under the heap, after it was made larger. Refusals change nothing."""
    advise = getattr(mmap, "MADV_HUGEPAGE", None)
    if advise is None:
        return
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for block in [libc.malloc(_BLOCK) for _ in range(_BLOCKS if _addresses_are_free() else 0)]:
        libc.free(block)  # None, where there was no room, may be freed
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in maps:
        if line.endswith("[heap]"):
            begin, end = (int(address, 16) for address in line.split()[0].split("-"))
            libc.madvise(begin, end - begin, advise)


def _addresses_are_free() -> bool:
    """Whether addresses that are never written to cost nobody anything."""
    import resource  # not on every system, but where glibc is

    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    if any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits):
        return False
    try:
        return int(Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii")) != _STRICT
    except (OSError, ValueError):
        return False
