from __future__ import annotations

import pytest

from vllm_proxy.common.model_patterns import patterns_of


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("exact", "exact"),
        ("qwen-exact", "qwen-exact"),
        ("qwen-7b", "qwen-*"),
        ("org/qwen-7b", "org/*"),
        ("v1", "v[0-9]"),
        ("v12", None),
        ("xexact", None),
        ("Exact", None),
        ("qwen", None),
        ("qwen-7b\nx", "qwen-*"),
        ("", None),
    ],
)
def test_a_name_comes_before_patterns_and_patterns_in_their_order(name: str, pattern: str | None) -> None:
    patterns = ("qwen-*", "exact", "org/*", "qwen-exact", "qwen-7*", "v[0-9]")
    assert patterns_of(patterns).match(name) == pattern
