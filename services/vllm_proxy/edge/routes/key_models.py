"""API keys as JSON: what is taken and what is answered. Names and meanings are those of `api_keys.json`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, WithJsonSchema

from vllm_proxy.api.auth.v1 import auth_pb2 as pb
from vllm_proxy.common.views import PERIODS

MAX_INT = 2**63 - 1

Label = Annotated[str, Field(min_length=1, max_length=128)]
# Strict: JSON's true is neither 1 nor a limit, nor is "5".
Flag = Annotated[bool, Field(strict=True)]
Tokens = Annotated[int, Field(strict=True, ge=0, le=MAX_INT)]
Whole = Annotated[int, Field(strict=True, gt=0, le=2**32 - 1)]
Moment = Annotated[
    AwareDatetime, WithJsonSchema({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "number"}]})
]
Pattern = Annotated[str, Field(min_length=1, max_length=256)]
Period = Literal["total", "day", "month"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class RateLimits(_Model):
    """A limit that is left out is the configuration's; null is unlimited."""

    qps: Annotated[float, Field(strict=True, gt=0, le=MAX_INT)] | None = None
    """Requests per second."""
    concurrent: Whole | None = None
    """Requests that run at once."""
    tokens_per_minute: Annotated[int, Field(strict=True, gt=0, le=MAX_INT)] | None = None
    """Prompt and response tokens per minute."""


class ModelLimits(RateLimits):
    """The same for one model, and the length of an answer."""

    max_response_tokens: Whole | None = None
    """Tokens of one answer."""


class KeyFields(_Model):
    """What can be said of a key when it is made or changed."""

    name: Annotated[str, Field(max_length=128)] | None = None
    """What people call it."""
    enabled: Flag | None = None
    """Whether it is accepted (default: true)."""
    quota: Tokens | None = None
    """Tokens that it may use, prompt and response together; null: unlimited."""
    quota_period: Period | None = None
    """When its quota begins anew, at midnight UTC: each `day`, each `month`, or never (`total`, the default)."""
    rate_limit: RateLimits | None = None
    """Its own rate limits; null: the configuration's. Replaced as a whole."""
    max_response_tokens: Whole | None = None
    """The longest answer that it may ask for, in tokens; null: the configuration's limit."""
    models: Annotated[list[Pattern], Field(max_length=256)] | None = None
    """The models and adapters that it may use, as patterns (`qwen-*`); null: all, an empty list: none."""
    model_limits: dict[Pattern, ModelLimits] | None = None
    """Its limits for the models that a pattern matches, beside `rate_limit`. Replaced as a whole."""
    expires_at: Moment | None = None
    """When it ends by itself: a time with its zone, or Unix seconds; null: never."""
    priority: Annotated[str, Field(max_length=128)] | Annotated[int, Field(strict=True)] | None = None
    """A priority class of the configuration, or its number; null: the default class."""
    admission_wait_ms: Annotated[int, Field(strict=True, ge=0, le=600_000)] | None = None
    """How long a request may wait for a limit instead of being refused, in milliseconds; null: the configuration's."""


class NewKey(KeyFields):
    user: Label
    """Who it belongs to. The user `admin` may use /admin."""


class KeyChanges(KeyFields):
    """A field that is left out stays as it is; null clears it."""

    user: Label | None = None
    """Who it belongs to. The user `admin` may use /admin."""


class Rotation(_Model):
    overlap_s: Annotated[float, Field(strict=True, ge=0, le=31_536_000)] | None = None
    """How long the old secret stays good, in seconds (default: auth.rotation_overlap_s)."""


class KeyUsage(BaseModel):
    """Since the key was made."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class KeyView(BaseModel):
    """A key without its secret. Times are RFC 3339, UTC."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    object: Literal["key"] = "key"
    id: str
    """Stays the same when the key is rotated."""
    prefix: str
    """A recognisable start; empty if only the key's hash was declared."""
    user: str
    name: str
    state: Literal["active", "disabled", "expired", "revoked"]
    source: Literal["declared", "created"]
    """`declared` keys stand in api_keys_file and are changed there."""
    enabled: bool
    quota: int | None
    quota_period: Period | None
    quota_used: int | None
    """Tokens that count against the quota in its period now."""
    quota_resets_at: datetime | None
    rate_limit: dict[str, float | None]
    """Its own rate limits; null: unlimited. Those that are left out are the configuration's."""
    max_response_tokens: int | None
    models: list[str] | None
    model_limits: dict[str, dict[str, float | None]]
    expires_at: datetime | None
    priority: str | None
    admission_wait_ms: int | None
    created_at: datetime | None
    created_by: str | None
    last_used_at: datetime | None
    old_secret_expires_at: datetime | None
    """Until when the secret before the last rotation is still good."""
    revoked_at: datetime | None
    running: int
    """Requests that run now."""
    reserved_tokens: int
    """Tokens that they reserve."""
    usage: KeyUsage


class NewKeyView(KeyView):
    key: str
    """The key itself. It is shown this once and kept nowhere."""


class KeyList(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    object: Literal["list"] = "list"
    data: list[KeyView]
    next_page_token: str | None
    """For the next page; null: there is none."""


def spec_of(fields: KeyFields) -> tuple[pb.KeySpec, list[str]]:
    """The fields that were given, and their names in the message."""
    spec, mask = pb.KeySpec(), []
    for name in sorted(fields.model_fields_set):
        value = getattr(fields, name)
        mask.append("expires_at_ms" if name == "expires_at" else name)
        if value is None:
            continue
        if isinstance(value, RateLimits):
            _fill_limits(spec.rate_limit, value)
        elif name == "model_limits":
            for pattern, limits in value.items():
                _fill_limits(spec.model_limits[pattern], limits)
        elif name == "models":
            spec.models.SetInParent()
            spec.models.patterns.extend(value)
        elif isinstance(value, datetime):
            spec.expires_at_ms = round(value.timestamp() * 1000)
        elif name == "quota_period":
            spec.quota_period = PERIODS[value]
        else:
            setattr(spec, name, str(value) if name == "priority" else value)
    return spec, mask


def _fill_limits(message: pb.KeyLimits, limits: RateLimits) -> None:
    message.SetInParent()
    for name in limits.model_fields_set:
        setattr(message, name, getattr(limits, name) or 0)
