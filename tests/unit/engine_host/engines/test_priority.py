from __future__ import annotations

import pytest

from vllm_proxy.engine_host.engines.priority import current_priority, priority_for


@pytest.mark.parametrize(
    ("of_key", "asked", "low_first", "high_first"),
    [
        (0, 0, 0, 0),
        (-10, 0, -10, 10),
        (10, 0, 10, -10),
        (-10, 3, -7, 10),  # 3: later where low goes first, earlier where high does
        (-10, -3, -10, 7),
        (None, -3, -3, -3),
    ],
)
def test_a_client_may_ask_to_come_later_never_earlier(
    of_key: int | None, asked: int, low_first: int, high_first: int
) -> None:
    current_priority.set(of_key)
    assert priority_for(asked) == low_first
    assert priority_for(asked, low_first=False) == high_first
