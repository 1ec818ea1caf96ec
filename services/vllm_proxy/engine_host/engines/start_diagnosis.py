"""Why an engine in a process of its own died: from how it ended and what it printed last."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from vllm_proxy.common.engine_faults import likely_cause

_QUOTED_LINES = 3
_QUOTED_CHARS = 300
_SHELL_SIGNAL_BASE = 128
_MARKS = ("Error", "Exception", "error:", "ERROR", "Killed", "not found", "No such file")


def diagnose(status: int | None, lines: Sequence[str]) -> str:
    """One line: the end, the likely cause, and the last lines of `lines` that name an error.

    `status` is negative for a signal, None if nobody could see it."""
    said = [how for how in (_ending(status), likely_cause("\n".join(lines))) if how]
    quoted = [line.strip()[:_QUOTED_CHARS] for line in lines if any(mark in line for mark in _MARKS)]
    quoted = list(dict.fromkeys(quoted or [line.strip()[:_QUOTED_CHARS] for line in lines[-1:]]))[-_QUOTED_LINES:]
    return "; ".join(said) + (f" | {' | '.join(quoted)}" if quoted else "")


def _ending(status: int | None) -> str:
    if status is None:
        return "it is gone"
    number = -status if status < 0 else status - _SHELL_SIGNAL_BASE
    if number == signal.SIGKILL:
        return "killed by signal 9, by the kernel if memory ran out (see dmesg)"
    if 0 < number < signal.NSIG:
        return f"ended by signal {number} ({signal.Signals(number).name})" if number in _SIGNALS else f"signal {number}"
    if status == 127:
        return "exit status 127: the command was not found"
    return f"exit status {status}"


_SIGNALS = frozenset(int(number) for number in signal.Signals)
