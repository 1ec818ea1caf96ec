"""What an admission is asked and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from vllm_proxy.auth.lease import Operation
from vllm_proxy.auth.limiter import LimitState
from vllm_proxy.auth.limits import Limits
from vllm_proxy.auth.prompt_estimate import Script
from vllm_proxy.auth.refusal import Refusal
from vllm_proxy.auth.store import LeaseOpened, Record


@dataclass(slots=True)
class Ask:
    """What a request wants. `response_tokens` None: the default for each of `choices`."""

    key_sha256: bytes
    operation: Operation
    owner_id: str = ""
    request_id: str = ""
    model: str = ""
    #: What is known of the prompt: token ids that were counted, and media.
    prompt_tokens: int = 0
    response_tokens: int | None = None
    choices: int = 1
    client_is_local: bool = False
    #: The prompt's text, whose tokens are estimated.
    prompt_bytes: int = 0
    prompt_script: Script = Script.UNSPECIFIED
    #: Nothing that could name a model.
    names_no_model: bool = False


@dataclass(slots=True)
class Decision:
    """Admitted if `refusal` is None; then `record`, if there is one, must be durable before anybody is told."""

    refusal: Refusal | None = None
    key_id: str = ""
    user: str = ""
    lease_id: str = ""
    reserved_tokens: int = 0
    requests: LimitState | None = None
    tokens: LimitState | None = None
    quota_remaining: int | None = None
    #: Tokens of one answer: the key's limit, or less if a quota has less left; None: unlimited.
    max_response_tokens: int | None = None
    priority: int = 0
    #: Of a READ: patterns over the models that the key may use; None: all.
    models: tuple[str, ...] | None = None
    record: LeaseOpened | None = None


class Standing(NamedTuple):
    """A key's limits and what is left of them, its user's and everybody's included."""

    limits: Limits
    max_response_tokens: int | None
    requests: LimitState | None
    tokens: LimitState | None
    quota_remaining: int | None


@dataclass(slots=True)
class Verdict:
    """What became of a settlement. Not applied: unknown, or settled already by a count that is worth more."""

    applied: bool
    records: list[Record] = field(default_factory=list)
