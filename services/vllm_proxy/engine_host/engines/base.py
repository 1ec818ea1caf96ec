"""What an engine adapter offers its host, whatever the engine.

An adapter owns the engine's life, its OpenAI application and the truth about tokens. Sessions, routing,
admission and the LoRA rules are the host's and know no engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vllm_proxy.common.response_ids import ResponseIds

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(slots=True)
class UsageMeter:
    """Tokens of one request, counted by the adapter from the engine's own outputs while they appear."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


#: The meter of the request that the current task serves. The host sets it around `Engine.app`; an adapter
#: adds to it from wherever the engine's outputs pass. None: nobody counts (the engine's own port).
current_meter: ContextVar[UsageMeter | None] = ContextVar("current_meter", default=None)

#: The id of the key whose request the current task serves, set beside the meter. None: it came another way.
current_key_id: ContextVar[str | None] = ContextVar("current_key_id", default=None)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One row of the engine's own `GET /v1/models`."""

    name: str
    card_json: bytes
    #: The base model's name for a LoRA adapter, empty for a base model.
    base: str = ""
    #: Where its weights are, as the engine says; empty if it does not.
    root: str = ""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    running: int = 0
    waiting: int = 0
    #: The used part of the KV cache, 0 to 1.
    kv_usage: float = 0.0


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """What an adapter must fit. Module shapes come from the base model's configuration and weights."""

    max_rank: int
    #: Full module name suffixes that take LoRA weights, e.g. `q_proj`. Empty: the engine does not tell.
    target_modules: frozenset[str] = frozenset()
    #: Module suffix -> (output size, input size) where the engine tells.
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """What `Engine.generate` produced since its last item; `finish_reason` is empty until the last."""

    text: str
    token_ids: Sequence[int] = ()
    finish_reason: str = ""


@dataclass(frozen=True, slots=True)
class GenerateParameters:
    """Unset values (None) are the engine's defaults."""

    model: str
    prompt: str | Sequence[int]
    request_id: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()


class EngineDied(Exception):
    """The engine cannot serve any more; the host reports it and exits non-zero."""


class Engine(Protocol):
    """One inference engine.

    `start` may take minutes and raises EngineDied with a sentence that names the likely cause. After it, `app`
    is the engine's OpenAI application, called without a socket. A request ends in the engine when `receive`
    answers `http.disconnect` or the calling task is cancelled.
    """

    kind: str
    version: str
    app: AsgiApp

    async def start(self) -> None: ...

    async def stop(self) -> None:
        """Ends the engine and every process of it. Safe to call twice, and after a failed start."""

    async def wait_dead(self) -> str:
        """Returns, with the cause, when the engine has died. Cancelled by the host when it stops."""

    def base_models(self) -> Sequence[str]:
        """The names that the base model is served under; the first is its own."""

    async def model_cards(self) -> Sequence[ModelCard]:
        """Base models first, then adapters."""

    def load(self) -> EngineLoad: ...

    def generate(self, parameters: GenerateParameters) -> AsyncIterator[GeneratedText]:
        """Typed generation for internal callers; counts into `current_meter`. Closing it aborts."""

    # LoRA. The host's registry decides; these only carry it out. `supports_lora` false: none is called.

    supports_lora: bool

    def adapter_limits(self) -> AdapterLimits: ...

    async def load_adapter(self, name: str, path: Path) -> None:
        """Makes `name` answer with the weights in `path` (checked by the registry), under an engine id that was
        never used before. Raises InvalidAdapter if the engine refuses them; then nothing is left behind."""

    async def remove_adapter(self, name: str) -> None:
        """Makes `name` unknown to new requests, waits for its running ones, frees it in the engine."""

    async def pin_adapter(self, name: str) -> None: ...


@runtime_checkable
class StoringEngine(Protocol):
    """An engine that keeps stored responses apart by their keys. Those of others are out of reach."""

    def use_response_ids(self, ids: ResponseIds) -> None:
        """Called once, before the start."""


class AdapterBook(Protocol):
    """What an engine that others reach too tells and asks of the host's registry."""

    def observe(self, cards: Sequence[ModelCard]) -> None:
        """The adapters that the engine has now, however they came."""

    def withholds(self, name: str) -> bool:
        """Whether an adapter lies in the resolver's folder that was unloaded and must stay so."""


@runtime_checkable
class ReturningEngine(Protocol):
    """An engine in another process, which may go and come back: `wait_dead` returns each time it is gone."""

    def join(self, book: AdapterBook) -> None:
        """Called once, before the start."""

    async def revive(self) -> None:
        """Returns when it is back. Raises EngineDied when it is given up."""


#: Asked by an adapter whose engine meets an unknown model name: loads it from the resolver's folder if it is
#: there and returns True. The engine then looks the name up again.
ResolveAdapter = Callable[[str], Awaitable[bool]]
