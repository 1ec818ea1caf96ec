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

from vllm_proxy.auth.keys import (
    DEFAULT_KEY,
    UnreadableKeysFile,
    create_if_missing,
    digest_of,
    load_keys,
    warn_about_keys,
)


def written(tmp_path: Path, *entries: Any) -> Path:
    path = tmp_path / "api_keys.json"
    path.write_text(json.dumps({"keys": entries}))
    path.chmod(0o600)
    return path


def test_a_key_and_a_hash_are_found_by_hash(tmp_path: Path) -> None:
    secret = "sk-0123456789abcdefghij"
    hashed = hashlib.sha256(b"sk-other").hexdigest()
    ring = load_keys(
        written(
            tmp_path,
            {"key": secret, "user": "alice", "quota": 10_000, "enabled": True},
            {"key_sha256": hashed.upper(), "user": "bob"},
        )
    )
    alice, bob = ring.find(digest_of(secret)), ring.find(digest_of("sk-other"))
    assert alice is not None and bob is not None and ring.find(digest_of("sk-none")) is None
    assert (alice.user, alice.quota, alice.prefix) == ("alice", 10_000, "sk-0123…")
    assert alice.key_id == hashlib.sha256(secret.encode()).hexdigest()[:12]
    assert (bob.user, bob.quota, bob.enabled, bob.prefix) == ("bob", None, True, "")
    assert secret not in repr(ring.problems) + repr(alice)


def test_a_short_key_does_not_show_most_of_itself(tmp_path: Path) -> None:
    (key,) = load_keys(written(tmp_path, {"key": "sk-abcdef", "user": "a"}))
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
        ({"key": "sk-good", "user": "x"}, "entry 1"),
    ],
    ids=str,
)
def test_a_bad_entry_names_itself_and_loses_nobody_else(tmp_path: Path, entry: Any, fault: str) -> None:
    ring = load_keys(written(tmp_path, {"key": "sk-good", "user": "alice"}, entry, {"key": "sk-last", "user": "z"}))
    assert [key.user for key in ring] == ["alice", "z"]
    (problem,) = ring.problems
    assert problem.startswith("entry 2") and fault in problem
    assert "sk-" not in problem
    if isinstance(entry, dict) and entry.get("user") == "x":
        assert "(user 'x')" in problem


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
    ring = load_keys(path)
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
