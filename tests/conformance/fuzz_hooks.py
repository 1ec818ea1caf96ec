"""Loaded by schemathesis, in its own environment: lets a good part of what it makes up reach the engine."""

from __future__ import annotations

import os
from typing import Any

import schemathesis

MODEL = os.environ["FUZZ_MODEL"]


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """A made-up model is a real one, and the body stays as good or bad as it was."""
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        return {**body, "model": MODEL}
    return body
