"""What a check is, what it finds, and what it may look at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from vllm_proxy.api.common.v1 import maintenance_pb2
from vllm_proxy.common.settings import LoadedSettings, Settings


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(NamedTuple):
    verdict: Verdict
    what: str
    #: What to do; empty if all is well.
    fix: str = ""


def ok(what: str) -> Finding:
    return Finding(Verdict.OK, what)


def warn(what: str, fix: str) -> Finding:
    return Finding(Verdict.WARN, what, fix)


def fail(what: str, fix: str) -> Finding:
    return Finding(Verdict.FAIL, what, fix)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one service said when it was asked who it is."""

    info: maintenance_pb2.GetInfoResponse | None
    #: Why there is none.
    error: str = ""
    #: Its clock less ours, in seconds, and by how much that may be wrong.
    clock_ahead_s: float = 0.0
    uncertain_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Site:
    """The installation that is looked at; its root is the working directory."""

    loaded: LoadedSettings
    #: What keeps the configuration from being used, a line each.
    faults: tuple[str, ...]
    #: Where the environments are.
    code_root: Path
    #: Less free space than this on any disk that is written to is a fault.
    min_free_bytes: int
    #: Clocks that differ by more are a fault.
    max_skew_s: float
    #: By the name of the service.
    answers: dict[str, Answer] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        return self.loaded.settings

    @property
    def runs(self) -> bool:
        """Whether any service answers."""
        return any(answer.info is not None for answer in self.answers.values())


Look = Callable[[Site], Iterable[Finding] | Awaitable[Iterable[Finding]]]


class Check(NamedTuple):
    name: str
    looks_at: str
    look: Look
