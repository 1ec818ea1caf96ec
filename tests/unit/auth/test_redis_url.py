from __future__ import annotations

import pytest

from vllm_proxy.auth.redis_url import RedisUrl, parse
from vllm_proxy.common.settings import REDIS_PASSWORD_VARIABLE, ConfigError


def url(kind: str = "", *, tls: bool = False, **more: object) -> RedisUrl:
    fields = {"nodes": (("h", 6379),), "username": None, "password": None, "db": 0} | more
    return RedisUrl(kind, tls, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected", "shown"),
    [
        ("redis://h", url(), "redis://h:6379"),
        ("rediss://h:1/3", url(tls=True, nodes=(("h", 1),), db=3), "rediss://h:1/3"),
        ("redis://:p%40ss@h", url(password="p@ss"), "redis://h:6379"),
        ("redis://me:a:b@h/0", url(username="me", password="a:b"), "redis://h:6379"),
        ("redis://[::1]:7", url(nodes=(("::1", 7),)), "redis://::1:7"),
        ("unix:///run/r.sock?db=2", url("unix", nodes=(), path="/run/r.sock", db=2), "unix:///run/r.sock/2"),
        ("unix://:secret@/r.sock", url("unix", nodes=(), path="/r.sock", password="secret"), "unix:///r.sock"),
        (
            "redis+sentinel://a,b:9/main/4",
            url("sentinel", nodes=(("a", 26379), ("b", 9)), service="main", db=4),
            "redis+sentinel://a:26379,b:9/main/4",
        ),
        (
            "rediss+cluster://:x@a:1,b:2",
            url("cluster", tls=True, nodes=(("a", 1), ("b", 2)), password="x"),
            "rediss+cluster://a:1,b:2",
        ),
    ],
)
def test_every_kind_is_read_and_shown_without_its_password(text: str, expected: RedisUrl, shown: str) -> None:
    assert parse(text) == expected
    assert str(expected) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://h",
        "redis+other://h",
        "redis://",
        "redis://h:port",
        "redis://h/db",
        "redis://h/1/2",
        "redis://a,b",
        "redis+sentinel://a,b",
        "redis+cluster://a/1",
    ],
)
def test_what_is_none_is_refused_without_showing_its_password(text: str) -> None:
    with pytest.raises(ConfigError, match=r"auth\.store") as told:
        parse(text.replace("://", "://me:hunter2@"))
    assert "hunter2" not in str(told.value)


def test_the_password_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REDIS_PASSWORD_VARIABLE, "from-outside")
    assert parse("redis://h").password == "from-outside"
    assert parse("redis://:own@h").password == "own"
