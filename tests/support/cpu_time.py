"""CPU time of processes, to the nanosecond (Linux; /proc's own figures come in steps of 10 ms)."""

from __future__ import annotations

import time
from contextlib import suppress

import psutil


def process_cpu_s(pid: int) -> float:
    """User and system time of all threads of a process so far, ended ones included.

    The clock id is what clock_getcpuclockid(3) makes of a process id. Raises OSError if there is no such process.
    """
    return time.clock_gettime((~pid << 3) | 2)


def tree_cpu_s(pid: int) -> float:
    """The same of a process and its live descendants; 0 if it is gone."""
    total = 0.0
    with suppress(psutil.NoSuchProcess, OSError):
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with suppress(OSError):
                total += process_cpu_s(process.pid)
    return total
