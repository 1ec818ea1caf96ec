"""The declared keys: whether their file can be read, and which of them no longer work."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from vllm_proxy.api.auth.v1 import auth_pb2, auth_pb2_grpc
from vllm_proxy.cli.doctor.check import Finding, Site, fail, ok, warn
from vllm_proxy.common.rpc.channel import open_channel

#: The world knows it (common to the first keys file of every installation).
_DEFAULT_KEY = "sk-default-key-change-me"
_ADMIN = "admin"
#: Of more expired keys only so many are named, and only so many pages of keys are looked through.
_SHOWN, _PAGES, _PAGE = 10, 20, 500
_CALL_TIMEOUT_S = 3.0


def keys_file(site: Site) -> Iterator[Finding]:
    path = site.settings.api_keys_file
    if not path.exists() and not path.is_symlink():
        yield warn(f"{path} is not there", "the first start makes it, with a random admin key")
        return
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        why = getattr(e, "strerror", None) or "not UTF-8"
        yield fail(
            f"{path} cannot be read: {why}",
            f"api_keys_file must name a file of the user that runs the services: chown it, chmod 600 {path}",
        )
        return
    try:
        entries = json.loads(text)["keys"]
        assert isinstance(entries, list)
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError) as e:
        where = f": line {e.lineno}: {e.msg}" if isinstance(e, json.JSONDecodeError) else ""
        yield fail(f"{path} is not a keys file{where}", 'it must be JSON: {"keys": [{"key": ..., "user": ...}, ...]}')
        return
    rows = [entry for entry in entries if isinstance(entry, dict)]
    if path.stat().st_mode & 0o077:
        yield warn(f"other users of this machine can read {path}", f"chmod 600 {path}")
    if any(row.get("key") == _DEFAULT_KEY and row.get("enabled", True) for row in rows):
        yield warn("the published default key is enabled", f"put keys of your own into {path} and remove it")
    if not any(row.get("user") == _ADMIN and row.get("enabled", True) for row in rows):
        yield warn("no key is the user admin's", "scripts/vllm-proxy keys create --user admin")
    yield ok(f"{path} can be read: {len(rows)} keys")


def expired_keys(site: Site) -> Iterator[Finding]:
    path = site.settings.api_keys_file
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["keys"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # keys_file says so
    expired = [(number, row) for number, row in enumerate(entries, start=1) if isinstance(row, dict) and _expired(row)]
    for number, row in expired[:_SHOWN]:
        yield warn(
            f"the key of {row.get('user')!r} (entry {number} of {path}) expired at {row['expires_at']}: it is refused",
            "give it a later expires_at, or remove it; the file is followed",
        )
    if len(expired) > _SHOWN:
        yield warn(f"so did {len(expired) - _SHOWN} more", "as above")
    if not expired:
        yield ok("no declared key has expired")


async def made_keys(site: Site) -> list[Finding]:
    """Those that the command line or the API made; only a running auth service knows them."""
    if not any(name.startswith("auth") and answer.info is not None for name, answer in site.answers.items()):
        return []
    findings: list[Finding] = []
    request = auth_pb2.ListKeysRequest(page_size=_PAGE)
    async with open_channel(site.settings.auth.address, site.settings.grpc) as channel:
        stub = auth_pb2_grpc.AuthServiceStub(channel)
        for _ in range(_PAGES):
            answer = await stub.ListKeys(request, timeout=_CALL_TIMEOUT_S)
            findings += [
                warn(
                    f"the key {key.key_id} of {key.user!r} has expired: it is refused",
                    f"scripts/vllm-proxy keys update {key.key_id} --expires 30d, or keys revoke {key.key_id}",
                )
                for key in answer.keys
                if key.state == auth_pb2.KEY_STATE_EXPIRED and key.source == auth_pb2.KEY_SOURCE_CREATED
            ]
            request.page_token = answer.next_page_token
            if not answer.next_page_token or len(findings) >= _SHOWN:
                break
    return findings[:_SHOWN] or [ok("no key that was made has expired")]


def _expired(row: Mapping[str, Any]) -> bool:
    try:
        return datetime.fromisoformat(row["expires_at"]).timestamp() <= time.time()
    except (KeyError, TypeError, ValueError):
        return False
