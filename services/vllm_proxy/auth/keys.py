"""The declared keys: `api_keys.json`, read, checked entry by entry, looked up by hash, created when missing."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

#: The key that the guide publishes. Because the world knows it, only clients on this machine may use it.
DEFAULT_KEY = "sk-default-key-change-me"
ADMIN_USER = "admin"

_FIELDS = frozenset({"key", "key_sha256", "user", "quota", "enabled"})
_KEY = re.compile(r"[\x21-\x7e]{1,512}")
_HASH = re.compile(r"[0-9a-f]{64}")
#: Keys shorter than this show only a few characters of themselves.
_LONG_KEY = 20


class UnreadableKeysFile(Exception):
    """The file as a whole cannot be used. The message names the file and the fault, never a key."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    #: SHA-256 of the key, 32 bytes.
    digest: bytes
    #: Safe to log.
    key_id: str
    #: A recognisable start, empty if only the hash was declared.
    prefix: str
    user: str
    enabled: bool
    #: Total tokens; None: unlimited.
    quota: int | None
    is_default: bool

    @property
    def is_admin(self) -> bool:
        return self.user == ADMIN_USER


class KeyRing:
    """The keys in force. Immutable: a reload makes a new one."""

    def __init__(self, keys: list[ApiKey], problems: list[str]) -> None:
        self._keys = {key.digest: key for key in keys}
        #: One line per entry that was skipped, naming its position and the fault.
        self.problems = problems

    def find(self, digest: bytes) -> ApiKey | None:
        """The key with this SHA-256. The time it takes tells nothing about keys: only hashes are compared, and the
        one that is found in full."""
        key = self._keys.get(digest)
        return key if key is not None and hmac.compare_digest(key.digest, digest) else None

    def __iter__(self) -> Iterator[ApiKey]:
        return iter(self._keys.values())

    def __len__(self) -> int:
        return len(self._keys)


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def load_keys(path: Path) -> KeyRing:
    """Reads the file. A bad entry becomes a problem and loses nobody else. Raises UnreadableKeysFile."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UnreadableKeysFile(f"{path}: cannot be read: {getattr(e, 'strerror', None) or 'not UTF-8'}") from None
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as e:
        where = f": line {e.lineno}: {e.msg}" if isinstance(e, json.JSONDecodeError) else ""
        raise UnreadableKeysFile(f"{path}: not valid JSON{where}") from None
    entries = data.get("keys") if isinstance(data, dict) else None
    if not isinstance(entries, list):
        raise UnreadableKeysFile(f'{path}: must be {{"keys": [...]}}')
    keys: dict[bytes, ApiKey] = {}
    positions: dict[bytes, int] = {}
    problems: list[str] = []
    for position, entry in enumerate(entries, start=1):
        try:
            key = _parse(entry)
            if key.digest in keys:
                raise ValueError(f"the same key as entry {positions[key.digest]}")
        except ValueError as e:
            problems.append(f"entry {position}{_named(entry)}: {e}")
            continue
        keys[key.digest] = key
        positions[key.digest] = position
    return KeyRing(list(keys.values()), problems)


def warn_about_keys(path: Path, ring: KeyRing) -> None:
    """What an operator must hear at every start and reload."""
    for problem in ring.problems:
        log.error("api key skipped", extra={"path": str(path), "detail": problem})
    if any(key.is_default and key.enabled for key in ring):
        log.warning(
            "THE PUBLISHED DEFAULT API KEY IS ENABLED. It works from this machine only; replace it, then reload.",
            extra={"path": str(path)},
        )
    if len(ring) == 0:
        log.warning("no api key is in force: every request will be refused", extra={"path": str(path)})
    try:
        if path.stat().st_mode & 0o077:
            log.warning("other users of this machine can read the API keys: chmod 600", extra={"path": str(path)})
    except OSError:
        pass


def create_if_missing(path: Path) -> None:
    """Writes the first keys file, 0600, whole or not at all.

    Its admin key is shown once if standard error is a terminal; a log only learns where it is.
    """
    if path.exists():
        return
    admin_key = f"sk-admin-{secrets.token_urlsafe(24)}"
    entries = [
        {"key": DEFAULT_KEY, "user": "default", "quota": None, "enabled": True},
        {"key": admin_key, "user": ADMIN_USER, "quota": None, "enabled": True},
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp makes it 0600; link() fails if somebody else was first, rename() would overwrite theirs.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"keys": entries}, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        return
    finally:
        Path(temporary).unlink()
    log.warning("made the first keys file, with a random admin key", extra={"path": str(path)})
    if sys.stderr.isatty():
        sys.stderr.write(f"Admin API key, shown this once (it is in {path}): {admin_key}\n")


def _parse(entry: Any) -> ApiKey:
    if not isinstance(entry, dict):
        raise ValueError("must be an object")
    if unknown := sorted(set(entry) - _FIELDS):
        raise ValueError(f"unknown field {unknown[0][:40]!r}")
    text, digest_hex = entry.get("key"), entry.get("key_sha256")
    if (text is None) == (digest_hex is None):
        raise ValueError('must have either "key" or "key_sha256"')
    if text is not None:
        if not isinstance(text, str) or not _KEY.fullmatch(text):
            raise ValueError('"key" must be 1 to 512 printable ASCII characters without spaces')
        digest = digest_of(text)
    else:
        if not isinstance(digest_hex, str) or not _HASH.fullmatch(digest_hex.lower()):
            raise ValueError('"key_sha256" must be 64 hexadecimal digits')
        digest = bytes.fromhex(digest_hex)
    user = entry.get("user")
    if not isinstance(user, str) or not 0 < len(user) <= 128 or not user.isprintable() or user != user.strip():
        raise ValueError('"user" must be 1 to 128 printable characters without spaces around them')
    quota = entry.get("quota")
    if quota is not None and (type(quota) is not int or not 0 <= quota < 2**63):
        raise ValueError('"quota" must be a whole number of tokens, or null for unlimited')
    enabled = entry.get("enabled", True)
    if not isinstance(enabled, bool):
        raise ValueError('"enabled" must be true or false')
    prefix = f"{text[: 7 if len(text) >= _LONG_KEY else 3]}…" if text else ""
    return ApiKey(
        digest=digest,
        key_id=digest.hex()[:12],
        prefix=prefix,
        user=user,
        enabled=enabled,
        quota=quota,
        is_default=digest == digest_of(DEFAULT_KEY),
    )


def _named(entry: Any) -> str:
    user = entry.get("user") if isinstance(entry, dict) else None
    return f" (user {user[:64]!r})" if isinstance(user, str) and user else ""
