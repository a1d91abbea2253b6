"""Keeps freed memory in the process, since a training step asks for the same sizes each time."""

from __future__ import annotations

import ctypes
import platform

# Parameters of glibc's mallopt.
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_KEEP = 2**30


def keep_freed_memory() -> bool:
    """Tells glibc's allocator to hand blocks of up to 1 GiB out again instead of unmapping them.

    Mapped anew, every page of a large tensor costs a page fault when it is first written: some
    4,000 a step on ml-100k. The setting holds for the whole process and is therefore for programs
    to choose, not for libraries: the command line does.

    Returns:
        Whether the allocator is glibc's and took the setting.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(name, _KEEP) == 1 for name in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
