"""Which memory is made huge pages of, and what becomes of a kernel that makes none."""

from __future__ import annotations

import asyncio
import ctypes
import mmap

import pytest

from vllm_proxy.auth.huge_pages import collapse, keep_huge_pages, make_huge_pages, steps

MIB = 1 << 20
MAPS = """\
55d0c0100000-55d0c1300000 rw-p 00000000 00:00 0                          [heap]
7f0000001000-7f0008401000 rw-p 00000000 00:00 0
7f1000000000-7f1001000000 r--p 00000000 08:01 1234                       /usr/lib/libc.so.6
7f2000000000-7f2008000000 rw-p 00000000 08:01 1234                       /tmp/a file
7f3000001000-7f3000801000 rw-p 00000000 00:00 0
7f4000000000-7f4008000000 ---p 00000000 00:00 0
"""


def test_whole_pages_of_large_private_regions() -> None:
    assert list(steps(MAPS)) == [
        (0x55D0C0200000, 16 * MIB),
        (0x7F0000200000, 64 * MIB),
        (0x7F0004200000, 64 * MIB),
        (0x7F0008200000, 2 * MIB),
    ]


async def test_a_kernel_that_makes_none_is_left_alone() -> None:
    calls: list[tuple[int, int]] = []

    def refuse(address: int, length: int) -> bool:
        calls.append((address, length))
        return False

    assert not await make_huge_pages(refuse, lambda: MAPS)
    assert calls == list(steps(MAPS))
    assert await make_huge_pages(refuse, lambda: ""), "nothing to make any of"


async def test_one_region_is_enough() -> None:
    assert await make_huge_pages(lambda address, _: address == 0x7F0004200000, lambda: MAPS)


async def test_small_processes_and_such_kernels_are_left_alone() -> None:
    async def refuse() -> bool:
        return False

    async with asyncio.timeout(10):
        await keep_huge_pages(refuse, lambda: 1 << 30)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await keep_huge_pages(refuse, lambda: 100 * MIB)


def test_the_memory_keeps_what_it_holds() -> None:
    with mmap.mmap(-1, 16 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[:] = bytes(range(256)) * (16 * MIB // 256)
        here = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        collapse(-(-here // (2 * MIB)) * 2 * MIB, 8 * MIB)
        assert memory[:] == bytes(range(256)) * (16 * MIB // 256)
