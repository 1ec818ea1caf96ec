"""Ids of stored responses."""

from __future__ import annotations

import re

import pytest

from vllm_proxy.common.response_ids import ResponseIds, host_tag, tag_of


def test_an_id_looks_like_the_engines_and_says_who_holds_it() -> None:
    made = ResponseIds("vllm").make("k1")
    assert re.fullmatch(r"resp_[0-9a-f]{32}", made)
    assert tag_of(made) == host_tag("vllm") != host_tag("vllm-2")


def test_it_belongs_to_its_key_at_its_host_only() -> None:
    ids = ResponseIds("vllm")
    made = ids.make("k1")
    assert ids.belongs(made, "k1")
    assert not ids.belongs(made, "k2")
    assert not ids.belongs(made, "")
    assert not ResponseIds("vllm").belongs(made, "k1")
    assert ids.make("k1") != made


@pytest.mark.parametrize("other", ["", "resp_", "nobody", "resp_" + "g" * 32, "resp_" + "0" * 31, "resp_é", "x" * 500])
def test_other_ids_are_nobodys(other: str) -> None:
    assert tag_of(other) == ""
    assert not ResponseIds("vllm").belongs(other, "k1")


def test_a_changed_id_is_nobodys() -> None:
    ids = ResponseIds("vllm")
    made = ids.make("k1")
    for place in range(5, len(made)):
        other = "0" if made[place] != "0" else "1"
        assert not ids.belongs(made[:place] + other + made[place + 1 :], "k1")
