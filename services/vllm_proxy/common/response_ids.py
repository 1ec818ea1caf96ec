"""Ids of stored responses: each says which host holds it and, to that host, which key made it.

`resp_` and 32 hex digits, as engines write them: 8 of the host's name, 12 random, 12 of a keyed hash over those and
the key's id. So any edge worker knows where to ask, and a host knows an owner without keeping a list. The secret lives
as long as the host's process, which is as long as what it has stored.
"""

from __future__ import annotations

import hmac
import re
import secrets
from hashlib import sha256

_PREFIX = "resp_"
_TAG_CHARS = 8
_PART_CHARS = 12
_ID = re.compile(rf"{_PREFIX}([0-9a-f]{{{_TAG_CHARS}}})[0-9a-f]{{{2 * _PART_CHARS}}}")


def host_tag(host_name: str) -> str:
    """What the ids of a host's responses begin with."""
    return sha256(host_name.encode()).hexdigest()[:_TAG_CHARS]


def tag_of(response_id: str) -> str:
    """The tag of the host that holds a response. Empty if the id is none of ours."""
    found = _ID.fullmatch(response_id)
    return found[1] if found else ""


class ResponseIds:
    """Makes one host's ids and knows them again."""

    def __init__(self, host_name: str) -> None:
        self._tag = host_tag(host_name)
        self._secret = secrets.token_bytes(32)

    def make(self, key_id: str) -> str:
        """A new id of a response that belongs to `key_id`."""
        return self._signed(secrets.token_hex(_PART_CHARS // 2), key_id)

    def belongs(self, response_id: str, key_id: str) -> bool:
        start = len(_PREFIX) + _TAG_CHARS
        expected = self._signed(response_id[start : start + _PART_CHARS], key_id)
        return hmac.compare_digest(response_id.encode(), expected.encode())

    def _signed(self, unique: str, key_id: str) -> str:
        mac = hmac.digest(self._secret, f"{unique} {key_id}".encode(), "sha256").hex()
        return f"{_PREFIX}{self._tag}{unique}{mac[:_PART_CHARS]}"
