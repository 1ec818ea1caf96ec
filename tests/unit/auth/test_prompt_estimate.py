from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from tests.unit.auth.fakes import Desk, api_key

from vllm_proxy.auth.decision import Ask
from vllm_proxy.auth.lease import Operation
from vllm_proxy.auth.prompt_estimate import PromptEstimates, Script
from vllm_proxy.auth.store import RatioLearned


def test_a_ratio_is_learned_for_each_model_and_script() -> None:
    estimates = PromptEstimates()
    assert estimates.tokens("m", Script.ASCII, 400) == 100
    for _ in range(100):
        estimates.learn("m", Script.ASCII, 500, 100)
        estimates.learn("m", Script.WIDE, 300, 150)
    assert abs(estimates.tokens("m", Script.ASCII, 5000) - 1000) <= 10
    assert abs(estimates.tokens("m", Script.WIDE, 300) - 150) <= 3
    assert estimates.tokens("other", Script.ASCII, 400) == 100


@pytest.mark.parametrize("script", list(Script))
@given(st.lists(st.tuples(st.integers(1, 10**7), st.integers(1, 10**7)), min_size=1, max_size=30))
def test_whatever_is_learned_stays_within_bounds(script: Script, samples: list[tuple[int, int]]) -> None:
    estimates = PromptEstimates()
    for size, tokens in samples:
        estimates.learn("m", script, size, tokens)
        assert 1000 / 64 <= estimates.tokens("m", script, 1000) <= 2000


def test_one_odd_prompt_does_not_spoil_the_ratio() -> None:
    estimates = PromptEstimates()
    for _ in range(50):
        estimates.learn("m", Script.ASCII, 1000, 250)
    estimates.learn("m", Script.ASCII, 1000, 100_000)
    assert estimates.tokens("m", Script.ASCII, 1000) < 300


def test_what_was_learned_outlives_a_restart_and_is_told_once() -> None:
    before, after = PromptEstimates(), PromptEstimates()
    for _ in range(30):
        before.learn("m", Script.OTHER, 1000, 100)
    rows = before.changes()
    assert [(row.model, row.script) for row in rows] == [("m", Script.OTHER)] and before.changes() == []
    after.restore([*rows, RatioLearned("m", 99, 1.0, 1.0), RatioLearned("n", 1, 1.0, 0.0)])
    assert after.tokens("m", Script.OTHER, 1000) == before.tokens("m", Script.OTHER, 1000)
    assert after.changes() == []


def test_models_without_end_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_proxy.auth.prompt_estimate._MAX_RATIOS", 10)
    estimates = PromptEstimates()
    for number in range(100):
        estimates.learn(f"m{number}", Script.ASCII, 100, 100)
    assert len(estimates._ratios) == 10 and estimates.tokens("m99", Script.ASCII, 1000) > 250


def test_admission_reserves_by_the_estimate_and_learns_from_the_settlement() -> None:
    desk = Desk(api_key("k"))
    ask = Ask(desk.key.digest, Operation.INFERENCE, "e", "r", "m", 0, 0, prompt_bytes=400, prompt_script=Script.ASCII)
    first = desk.admission.admit(ask)
    assert first.reserved_tokens == 100
    desk.settle(first.lease_id, 200, 0)
    assert desk.admission.admit(ask).reserved_tokens > 100
    # Beside an image, a count says nothing about the text.
    image = desk.admission.admit(replace(ask, prompt_tokens=1024))
    assert image.reserved_tokens > 1124
    before = desk.admission.admit(ask).reserved_tokens
    desk.settle(image.lease_id, 5000, 0)
    assert desk.admission.admit(ask).reserved_tokens == before
    desk.clock.advance(30)
    assert [record for record in desk.admission.tick() if isinstance(record, RatioLearned)]
    text = generate_latest(desk.metrics.registry).decode()
    assert 'vllm_proxy_auth_prompt_estimate_ratio_bucket{le="0.5"} 1.0' in text
    assert "vllm_proxy_auth_prompt_estimate_ratio_count 1.0" in text
    assert "vllm_proxy_auth_prompt_estimate_ratio_sum 0.5" in text
