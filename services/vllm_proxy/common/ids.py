"""Identifiers: requests, process incarnations."""

from __future__ import annotations

import os
import re
import secrets

#: A client's own request id is echoed only if it is this harmless.
_CLIENT_ID = re.compile(rb"[A-Za-z0-9._:\-]{1,128}")

REQUEST_ID_METADATA = "x-request-id"
TRACEPARENT_METADATA = "traceparent"
TOKEN_METADATA = "x-vllm-proxy-token"


def new_request_id() -> str:
    # What `secrets` reads too, without its layers: every request gets one.
    return "req-" + os.urandom(16).hex()


def accept_request_id(value: bytes | None) -> str:
    """The client's request id if it is well-formed (letters, digits, `._:-`, at most 128), else a new one."""
    if value and _CLIENT_ID.fullmatch(value):
        return value.decode("ascii")
    return new_request_id()


def new_incarnation(name: str) -> str:
    """A name for this start of a process, different from every earlier one's."""
    return f"{name}-{os.getpid()}-{secrets.token_hex(6)}"
