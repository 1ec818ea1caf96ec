"""`from` and `to` of a query: times with or without a zone (UTC then), dates, or Unix seconds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import Query
from pydantic import WithJsonSchema

_HOW = "a date, a time (UTC unless it says a zone), or Unix seconds"
#: What a query may say.
_TIME = WithJsonSchema(
    {"anyOf": [{"type": "string", "format": kind} for kind in ("date-time", "date")] + [{"type": "number"}]}
)
Moment = Annotated[datetime, _TIME]
From = Annotated[Moment | None, Query(alias="from", description=f"From when on: {_HOW}.")]
To = Annotated[Moment | None, Query(alias="to", description=f"Until when, exclusive: {_HOW}. Default: now.")]


def unix_ms(moment: datetime | None) -> int:
    """0 for none."""
    if moment is None:
        return 0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0, round(moment.timestamp() * 1000))
