"""Values as people write them: `1M` tokens, `30d`, `2027-01-31`."""

from __future__ import annotations

import argparse
import re
import time
from datetime import UTC, datetime

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)([kKmMgG]?)")
_FACTORS = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
#: Clears a value.
NONE = "none"
UNLIMITED = "unlimited"


class BadValue(Exception):
    """The message names the argument."""


def quantity(text: str) -> int:
    """A number of tokens: 500, 20k, 1.5M."""
    match = _QUANTITY.fullmatch(text.replace("_", "").replace(",", ""))
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number such as 500, 20k or 1.5M")
    return round(float(match[1]) * _FACTORS[match[2].lower()])


def duration_s(text: str) -> float:
    """A time span: 90s, 15m, 12h, 30d, 2w."""
    if text == "0":
        return 0.0
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time span such as 90s, 15m, 12h, 30d or 2w")
    return float(match[1]) * _SECONDS[match[2]]


def moment_ms(text: str) -> int:
    """A time in Unix milliseconds: a date or a time (UTC unless it says a zone)."""
    try:
        moment = datetime.fromisoformat(text)
        return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 2027-01-31 or 2027-01-31T12:00") from None


def ahead_ms(text: str) -> int:
    """A time to come: a time, or a span from now."""
    if _DURATION.fullmatch(text):
        return round((time.time() + duration_s(text)) * 1000)
    return moment_ms(text)


def ago_ms(text: str) -> int:
    """A time that was: a time, or a span back from now."""
    if _DURATION.fullmatch(text):
        return round((time.time() - duration_s(text)) * 1000)
    return moment_ms(text)
