"""The short form of `make chaos-admission`: everything is killed at random, then the books must balance."""

from __future__ import annotations

import pytest
from tests.load.chaos import Chaos, Plan


@pytest.mark.parametrize("store", ["sqlite", "redis"])
async def test_the_books_balance_whatever_is_killed(store: str) -> None:
    plan = Plan(store, kills=7, streams=40, seed=3, pause_s=(0.3, 1.5))
    report = await Chaos(plan).run()
    print(report)
    assert report.good, report
