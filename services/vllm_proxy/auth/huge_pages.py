"""Keeps the memory of many accounts in huge pages, where Linux has them.

The accounts of a million keys lie all over a gigabyte. With pages of 4 KiB much of the time to reach one is spent on
looking up where it lies; the table of 2 MiB pages fits into the processor's caches. docs/adr/0010 has the figures.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import re
import resource
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

log = logging.getLogger(__name__)

_PAGE_BYTES = 2 << 20
#: Since Linux 6.1: makes huge pages of what is there, whatever the system's policy for new memory is.
_MADV_COLLAPSE = 25
_MAPS = Path("/proc/self/maps")
#: At a time, some tenths of a second; a stop waits no longer.
_STEP_BYTES = 64 << 20
#: Less than this is not worth it, nor is less growth worth doing it again.
_WORTH_BYTES = 128 << 20
_LOOK_EVERY_S = 60.0
#: Private memory of the process that no file is behind.
_ANONYMOUS = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw-p 0+ 00:00 0\s*(?:\[heap\])?$", re.MULTILINE)

#: Regions from here on: the stacks of threads are smaller, and would only be filled up.
_REGION_BYTES = 16 << 20

#: Makes huge pages of (address, bytes); False if the kernel does not know how.
Collapse = Callable[[int, int], bool]


def steps(maps: str) -> Iterator[tuple[int, int]]:
    """What /proc/self/maps says that can be made huge pages of: (address, bytes), whole pages, some at a time."""
    for match in _ANONYMOUS.finditer(maps):
        begin, end = (int(address, 16) for address in match.groups())
        if end - begin < _REGION_BYTES:
            continue
        begin, end = -(-begin // _PAGE_BYTES) * _PAGE_BYTES, end // _PAGE_BYTES * _PAGE_BYTES
        for address in range(begin, end, _STEP_BYTES):
            yield address, min(_STEP_BYTES, end - address)


def collapse(address: int, length: int) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    # Other errors mean that there is no such page to spare, or that the memory is gone: then it stays as it is.
    return bool(libc.madvise(address, length, _MADV_COLLAPSE) == 0 or ctypes.get_errno() != errno.EINVAL)


async def make_huge_pages(collapse: Collapse = collapse, maps: Callable[[], str] = _MAPS.read_text) -> bool:
    """Of all that the process has now; False if the kernel makes none."""
    done = [await asyncio.to_thread(collapse, *step) for step in steps(maps())]
    return any(done) or not done


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def keep_huge_pages(
    make: Callable[[], Awaitable[bool]] = make_huge_pages, resident: Callable[[], int] = resident_bytes
) -> None:
    """Once now, and again whenever the process has grown, if it is large enough; ends if the kernel makes none."""
    before = 0
    while True:
        if resident() - before >= _WORTH_BYTES:
            if not await make():
                log.info("no huge pages: this kernel does not make them on demand")
                return
            before = resident()
        await asyncio.sleep(_LOOK_EVERY_S)
