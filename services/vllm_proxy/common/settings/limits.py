"""Limits on what keys, users and everybody together may use."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vllm_proxy.common.settings.fields import PositiveInt, Section


class RateLimit(Section):
    qps: Annotated[float, Field(gt=0)] | None = None
    """Requests per second; null: unlimited."""
    concurrent: PositiveInt | None = None
    """Requests that run at once; null: unlimited."""
    tokens_per_minute: PositiveInt | None = None
    """Prompt and response tokens per minute; null: unlimited."""


class UserLimit(Section):
    """What one user may do with all keys together; a limit that is left out is user_rate_limit's."""

    qps: Annotated[float, Field(gt=0)] | None = None
    """Requests per second; null: unlimited."""
    concurrent: PositiveInt | None = None
    """Requests that run at once; null: unlimited."""
    tokens_per_minute: PositiveInt | None = None
    """Prompt and response tokens per minute; null: unlimited."""
    quota: Annotated[int, Field(ge=0)] | None = None
    """Tokens in total, or in each quota_period; null: unlimited."""
    quota_period: Literal["day", "month"] | None = None
    """The calendar period (UTC) after which the quota is whole again; null: never."""
