"""The keys in force: those of the declared file and those made by the API, found by the hash of the key."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain

from vllm_proxy.auth.limits import NO_RULES, KeyRules, QuotaPeriod

#: The key that the guide publishes. Because the world knows it, only clients on this machine may use it.
DEFAULT_KEY = "sk-default-key-change-me"
ADMIN_USER = "admin"
_KEY_ID_BYTES = 6


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


_DEFAULT_DIGEST = digest_of(DEFAULT_KEY)


def key_id_of(digest: bytes) -> str:
    """A key's id, safe to log: the first 12 hex digits of its hash."""
    return digest[:_KEY_ID_BYTES].hex()


class KeySource(StrEnum):
    """Where a key stands. Only what the API made can be changed by it."""

    FILE = "file"
    API = "api"


@dataclass(frozen=True, slots=True)
class ApiKey:
    #: SHA-256 of the key, 32 bytes.
    digest: bytes
    #: A recognisable start, empty if only the hash was declared.
    prefix: str
    user: str
    enabled: bool = True
    #: Tokens, in total or in each `quota_period`; None: unlimited.
    quota: int | None = None
    quota_period: QuotaPeriod = None
    #: Unix milliseconds; None: never.
    expires_at_ms: int | None = None
    rules: KeyRules = NO_RULES
    #: A label for people.
    name: str = ""
    source: KeySource = KeySource.FILE

    @property
    def key_id(self) -> str:
        return key_id_of(self.digest)

    @property
    def is_default(self) -> bool:
        return self.digest == _DEFAULT_DIGEST

    @property
    def is_admin(self) -> bool:
        return self.user == ADMIN_USER


class KeyRing:
    """A key that is declared hides one of the same hash that the API made."""

    def __init__(self, declared: Iterable[ApiKey] = (), made: Iterable[ApiKey] = ()) -> None:
        self._declared = {key.digest: key for key in declared}
        self._made = {key.digest: key for key in made}

    def find(self, digest: bytes) -> ApiKey | None:
        """The key with this SHA-256. The time it takes tells nothing about keys: only hashes are compared, and the
        one that is found in full."""
        key = self._declared.get(digest) or self._made.get(digest)
        return key if key is not None and hmac.compare_digest(key.digest, digest) else None

    def by_id(self, key_id: str) -> ApiKey | None:
        """Looks through all keys: for people, not for requests."""
        return next((key for key in self if key.key_id == key_id), None)

    def declare(self, keys: Iterable[ApiKey]) -> None:
        """Replaces the keys of the file."""
        self._declared = {key.digest: key for key in keys}

    def put(self, key: ApiKey) -> None:
        """Adds or replaces a key that the API made."""
        self._made[key.digest] = key

    def remove(self, digest: bytes) -> None:
        """Takes away a key that the API made."""
        self._made.pop(digest, None)

    def __iter__(self) -> Iterator[ApiKey]:
        return chain(
            self._declared.values(), (key for digest, key in self._made.items() if digest not in self._declared)
        )

    def __len__(self) -> int:
        return len(self._made) + sum(digest not in self._made for digest in self._declared)
