"""The keys in force: those of the declared file and those made by the API, found by the hash of the key."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from heapq import heappop, heappush
from itertools import chain
from typing import NamedTuple

from vllm_proxy.auth.limits import NO_RULES, KeyRules, QuotaPeriod

#: The key that the guide publishes. Because the world knows it, only clients on this machine may use it.
DEFAULT_KEY = "sk-default-key-change-me"
ADMIN_USER = "admin"
KEY_ID_BYTES = 6


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


_DEFAULT_DIGEST = digest_of(DEFAULT_KEY)


def key_id_of(digest: bytes) -> str:
    """A key's id, safe to log: the first 12 hex digits of its hash."""
    return digest[:KEY_ID_BYTES].hex()


class KeySource(StrEnum):
    """Where a key stands. Only what the API made can be changed by it."""

    FILE = "file"
    API = "api"


class Rotation(NamedTuple):
    """What a key that got a new secret is known by. Hashes, as in ApiKey."""

    secret: bytes
    old: bytes
    #: Until when the old one is good, in Unix milliseconds. 0: it is not.
    old_expires_at_ms: int


@dataclass(frozen=True, slots=True)
class ApiKey:
    #: SHA-256 of the key, 32 bytes; of its first secret if it was rotated, since its account goes by it.
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
    rotation: Rotation | None = None

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
        self._made: dict[bytes, ApiKey] = {}
        #: The hash of each secret of a rotated key -> its account.
        self._rotated: dict[bytes, bytes] = {}
        #: (expiry in Unix milliseconds, account, old hash), the next one first.
        self._overlaps: list[tuple[int, bytes, bytes]] = []
        for key in made:
            self.put(key)

    def find(self, digest: bytes) -> ApiKey | None:
        """The key with this SHA-256. The time it takes tells nothing about keys: only hashes are compared, and the
        one that is found in full."""
        key = self._declared.get(digest) or self._made.get(digest)
        if key is None or key.rotation is not None:
            return self._made.get(self._rotated.get(digest, b""))
        return key if hmac.compare_digest(key.digest, digest) else None

    def of_account(self, digest: bytes) -> ApiKey | None:
        """The key whose account this is, whatever its secret is by now."""
        return self._declared.get(digest) or self._made.get(digest)

    def declared_by_id(self, key_id: str) -> ApiKey | None:
        return next((key for key in self._declared.values() if key.key_id == key_id), None)

    def declared(self) -> Iterable[ApiKey]:
        """In the order of their file."""
        return self._declared.values()

    def declare(self, keys: Iterable[ApiKey]) -> None:
        """Replaces the keys of the file."""
        self._declared = {key.digest: key for key in keys}

    def put(self, key: ApiKey) -> None:
        """Adds or replaces a key that the API made."""
        self._forget_secrets(key.digest)
        self._made[key.digest] = key
        if (rotation := key.rotation) is not None:
            self._rotated[rotation.secret] = key.digest
            if rotation.old_expires_at_ms:
                self._rotated[rotation.old] = key.digest
                heappush(self._overlaps, (rotation.old_expires_at_ms, key.digest, rotation.old))

    def remove(self, digest: bytes) -> None:
        """Takes away a key that the API made."""
        self._forget_secrets(digest)
        self._made.pop(digest, None)

    def lapse(self, now_ms: int) -> None:
        """Takes old secrets out of force whose overlap is over. Call often."""
        while self._overlaps and self._overlaps[0][0] <= now_ms:
            expires_at_ms, account, old = heappop(self._overlaps)
            key = self._made.get(account)
            # A key that was rotated again or revoked has no more to do with it.
            if key is not None and key.rotation is not None and key.rotation[1:] == (old, expires_at_ms):
                self._rotated.pop(old, None)

    def _forget_secrets(self, account: bytes) -> None:
        before = self._made.get(account)
        if before is not None and before.rotation is not None:
            self._rotated.pop(before.rotation.secret, None)
            self._rotated.pop(before.rotation.old, None)

    def __iter__(self) -> Iterator[ApiKey]:
        return chain(
            self._declared.values(), (key for digest, key in self._made.items() if digest not in self._declared)
        )

    def __len__(self) -> int:
        return len(self._made) + sum(digest not in self._made for digest in self._declared)
