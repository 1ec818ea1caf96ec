"""The declared keys: `api_keys.json`, read and checked entry by entry, created when missing."""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from vllm_proxy.auth.key_entry import parse_entry
from vllm_proxy.auth.keys import ADMIN_USER, DEFAULT_KEY, ApiKey

log = logging.getLogger(__name__)


class UnreadableKeysFile(Exception):
    """The file as a whole cannot be used. The message names the file and the fault, never a key."""


class DeclaredKeys(NamedTuple):
    keys: list[ApiKey]
    #: One line per entry that was skipped, naming its position and the fault.
    problems: list[str]


def load_keys(path: Path) -> DeclaredKeys:
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
            key = parse_entry(entry)
            if key.digest in keys:
                raise ValueError(f"the same key as entry {positions[key.digest]}")
        except ValueError as e:
            problems.append(f"entry {position}{_named(entry)}: {e}")
            continue
        keys[key.digest] = key
        positions[key.digest] = position
    return DeclaredKeys(list(keys.values()), problems)


def warn_about_keys(path: Path, declared: DeclaredKeys) -> None:
    """What an operator must hear at every start and reload."""
    for problem in declared.problems:
        log.error("api key skipped", extra={"path": str(path), "detail": problem})
    if any(key.is_default and key.enabled for key in declared.keys):
        log.warning(
            "THE PUBLISHED DEFAULT API KEY IS ENABLED. It works from this machine only; replace it, then reload.",
            extra={"path": str(path)},
        )
    if not declared.keys:
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


def _named(entry: Any) -> str:
    user = entry.get("user") if isinstance(entry, dict) else None
    return f" (user {user[:64]!r})" if isinstance(user, str) and user else ""
