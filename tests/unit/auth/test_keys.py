from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from vllm_proxy.auth.key_entry import entry_of, parse_entry
from vllm_proxy.auth.keys import DEFAULT_KEY, KeyRing, KeySource, digest_of
from vllm_proxy.auth.keys_file import UnreadableKeysFile, create_if_missing, load_keys, warn_about_keys
from vllm_proxy.auth.limits import NO_RULES, Limits


def written(tmp_path: Path, *entries: Any) -> Path:
    path = tmp_path / "api_keys.json"
    path.write_text(json.dumps({"keys": entries}))
    path.chmod(0o600)
    return path


def test_a_key_and_a_hash_are_found_by_hash(tmp_path: Path) -> None:
    secret = "sk-0123456789abcdefghij"
    hashed = hashlib.sha256(b"sk-other").hexdigest()
    declared = load_keys(
        written(
            tmp_path,
            {"key": secret, "user": "alice", "quota": 10_000, "enabled": True},
            {"key_sha256": hashed.upper(), "user": "bob"},
        )
    )
    ring = KeyRing(declared.keys)
    alice, bob = ring.find(digest_of(secret)), ring.find(digest_of("sk-other"))
    assert alice is not None and bob is not None and ring.find(digest_of("sk-none")) is None
    assert (alice.user, alice.quota, alice.prefix) == ("alice", 10_000, "sk-0123…")
    assert alice.key_id == hashlib.sha256(secret.encode()).hexdigest()[:12]
    assert (bob.user, bob.quota, bob.enabled, bob.prefix) == ("bob", None, True, "")
    assert secret not in repr(declared.problems) + repr(alice)


def test_a_short_key_does_not_show_most_of_itself(tmp_path: Path) -> None:
    (key,) = load_keys(written(tmp_path, {"key": "sk-abcdef", "user": "a"})).keys
    assert key.prefix == "sk-…"


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ("sk-text", "object"),
        ({"user": "x"}, "either"),
        ({"key": "sk-x", "key_sha256": "0" * 64, "user": "x"}, "either"),
        ({"key": "", "user": "x"}, '"key"'),
        ({"key": "sk x", "user": "x"}, '"key"'),
        ({"key": "sk-ü", "user": "x"}, '"key"'),
        ({"key": 5, "user": "x"}, '"key"'),
        ({"key_sha256": "0" * 63, "user": "x"}, '"key_sha256"'),
        ({"key": "sk-x"}, '"user"'),
        ({"key": "sk-x", "user": ""}, '"user"'),
        ({"key": "sk-x", "user": " admin"}, '"user"'),
        ({"key": "sk-x", "user": "a\nb"}, '"user"'),
        ({"key": "sk-x", "user": "x", "quota": -1}, '"quota"'),
        ({"key": "sk-x", "user": "x", "quota": True}, '"quota"'),
        ({"key": "sk-x", "user": "x", "quota": 1.5}, '"quota"'),
        ({"key": "sk-x", "user": "x", "quota": "10"}, '"quota"'),
        ({"key": "sk-x", "user": "x", "enabled": "no"}, '"enabled"'),
        ({"key": "sk-x", "user": "x", "quotta": 5}, "quotta"),
        ({"key": "sk-x", "user": "x", "quota_period": "day"}, '"quota_period" needs a "quota"'),
        ({"key": "sk-x", "user": "x", "quota": 5, "quota_period": "week"}, '"quota_period"'),
        ({"key": "sk-x", "user": "x", "rate_limit": 5}, '"rate_limit"'),
        ({"key": "sk-x", "user": "x", "rate_limit": {"rps": 5}}, "rps"),
        ({"key": "sk-x", "user": "x", "rate_limit": {"qps": 0}}, '"qps"'),
        ({"key": "sk-x", "user": "x", "rate_limit": {"qps": float("nan")}}, '"qps"'),
        ({"key": "sk-x", "user": "x", "rate_limit": {"concurrent": 1.5}}, '"concurrent"'),
        ({"key": "sk-x", "user": "x", "rate_limit": {"tokens_per_minute": True}}, '"tokens_per_minute"'),
        ({"key": "sk-x", "user": "x", "max_response_tokens": 0}, '"max_response_tokens"'),
        ({"key": "sk-x", "user": "x", "models": "qwen"}, '"models"'),
        ({"key": "sk-x", "user": "x", "models": [5]}, '"models"'),
        ({"key": "sk-x", "user": "x", "model_limits": []}, '"model_limits"'),
        ({"key": "sk-x", "user": "x", "model_limits": {"a": {"quota": 5}}}, '"model_limits"'),
        ({"key": "sk-x", "user": "x", "expires_at": "tomorrow"}, '"expires_at"'),
        ({"key": "sk-x", "user": "x", "expires_at": "2027-01-31T12:00:00"}, '"expires_at"'),
        ({"key": "sk-x", "user": "x", "priority": 1e9}, '"priority"'),
        ({"key": "sk-x", "user": "x", "admission_wait_ms": -1}, '"admission_wait_ms"'),
        ({"key": "sk-x", "user": "x", "name": ""}, '"name"'),
        ({"key": "sk-x", "user": "x", "prefix": "sk-"}, '"prefix"'),
        ({"key": "sk-good", "user": "x"}, "entry 1"),
    ],
    ids=str,
)
def test_a_bad_entry_names_itself_and_loses_nobody_else(tmp_path: Path, entry: Any, fault: str) -> None:
    declared = load_keys(written(tmp_path, {"key": "sk-good", "user": "alice"}, entry, {"key": "sk-last", "user": "z"}))
    assert [key.user for key in declared.keys] == ["alice", "z"]
    (problem,) = declared.problems
    assert problem.startswith("entry 2") and fault in problem
    assert "sk-" not in problem
    if isinstance(entry, dict) and entry.get("user") == "x":
        assert "(user 'x')" in problem


FULL_ENTRY = {
    "key_sha256": "ab" * 32,
    "user": "alice",
    "enabled": False,
    "quota": 5,
    "prefix": "sk-0123…",
    "name": "the night batch",
    "quota_period": "month",
    "expires_at": "2027-01-31T12:00:00Z",
    "rate_limit": {"qps": 2.5, "concurrent": None},
    "max_response_tokens": 100,
    "models": ["qwen-*", "pirate"],
    "model_limits": {"pirate": {"tokens_per_minute": 500, "max_response_tokens": None}},
    "priority": "batch",
    "admission_wait_ms": 500,
}


@pytest.mark.parametrize("entry", [FULL_ENTRY, {"key_sha256": "cd" * 32, "user": "b", "enabled": True, "quota": None}])
def test_an_entry_is_written_as_it_was_read(entry: dict[str, Any]) -> None:
    key = parse_entry(entry, KeySource.API)
    assert entry_of(key) == entry
    assert parse_entry(json.loads(json.dumps(entry_of(key))), KeySource.API) == key


def test_what_an_entry_means() -> None:
    key = parse_entry(FULL_ENTRY)
    assert key.rules.limits.over(Limits(1, 2, 3)) == Limits(2.5, None, 3), "absent: the default; null: unlimited"
    assert key.expires_at_ms == 1801396800_000
    assert parse_entry({**FULL_ENTRY, "user": "bob"}).rules is key.rules, "equal rules are kept once"
    assert parse_entry({"key": "sk-x", "user": "u"}).rules is NO_RULES


def test_a_ring_holds_declared_and_made_keys_and_changes_one_at_a_time() -> None:
    declared = parse_entry({"key": "sk-a", "user": "declared"})
    hidden = parse_entry({"key": "sk-a", "user": "made"}, KeySource.API)
    made = parse_entry({"key": "sk-b", "user": "b"}, KeySource.API)
    ring = KeyRing([declared], [hidden, made])
    assert ring.find(declared.digest) is declared and len(ring) == 2 == len(list(ring))
    ring.remove(made.digest)
    assert ring.find(made.digest) is None
    ring.put(made)
    assert ring.of_account(made.digest) is made and ring.declared_by_id("0" * 12) is None
    ring.declare([])
    assert ring.find(declared.digest) is hidden and {key.user for key in ring} == {"made", "b"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"keys": {}}', '{"Keys": []}', "null", "[" * 100_000, b"\xff\xfe"])
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "api_keys.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UnreadableKeysFile, match=re.escape(str(path))):
        load_keys(path)


def test_a_missing_file_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(UnreadableKeysFile, match="No such file"):
        load_keys(tmp_path / "none.json")


def test_the_first_file_has_the_default_key_and_a_random_admin_key_shown_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "config" / "api_keys.json"
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr", terminal)
    with caplog.at_level(logging.DEBUG):
        create_if_missing(path)
    (shown,) = re.findall(r"sk-admin-[\w-]{32}", terminal.getvalue())
    assert "sk-" not in caplog.text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ring = KeyRing(load_keys(path).keys)
    default, admin = ring.find(digest_of(DEFAULT_KEY)), ring.find(digest_of(shown))
    assert default is not None and default.is_default and default.user == "default" and not default.is_admin
    assert admin is not None and admin.is_admin and not admin.is_default
    before = path.read_bytes()
    create_if_missing(path)
    assert path.read_bytes() == before and terminal.getvalue().count("sk-admin-") == 1
    assert [child.name for child in path.parent.iterdir()] == ["api_keys.json"]


def test_two_first_starts_at_once_leave_one_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "api_keys.json"
    path.write_text("theirs")
    # As if the other process had written its file after this one had looked.
    monkeypatch.setattr(Path, "exists", lambda self: False)
    create_if_missing(path)
    assert path.read_text() == "theirs" and capfd.readouterr().err == ""
    assert [child.name for child in tmp_path.iterdir()] == ["api_keys.json"]


def test_the_default_key_is_warned_about_while_it_is_enabled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, {"key": DEFAULT_KEY, "user": "default"})
    warn_about_keys(path, load_keys(path))
    assert "DEFAULT API KEY" in caplog.text
    caplog.clear()
    path = written(tmp_path, {"key": DEFAULT_KEY, "user": "default", "enabled": False})
    warn_about_keys(path, load_keys(path))
    assert not caplog.records


def test_problems_an_empty_ring_and_loose_permissions_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, {"key": "sk-x"})
    path.chmod(0o644)
    warn_about_keys(path, load_keys(path))
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING", "WARNING"]
    assert "sk-x" not in "".join(str(vars(record)) for record in caplog.records)
