"""How the policies spread requests."""

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.common.routing.host import Host
from vllm_proxy.common.routing.least_loaded import LeastLoaded, load_of
from vllm_proxy.common.routing.round_robin import RoundRobin


def hosts(*loads: int) -> list[Host]:
    return [
        Host(f"h{i:02}", "1", f"unix:{i}", "sim", pb.HOST_STATE_SERVING, others_in_flight=load)
        for i, load in enumerate(loads)
    ]


@settings(deadline=None)
@given(loads=st.lists(st.integers(0, 50), min_size=2, max_size=12), seed=st.integers(0, 1000))
def test_least_loaded_evens_out(loads: list[int], seed: int) -> None:
    fleet = hosts(*loads)
    policy = LeastLoaded(random.Random(seed))
    local: Counter[str] = Counter()
    for _ in range(100 * len(fleet)):
        local[policy.choose("m", fleet, local).name] += 1
    totals = [load_of(host, local) for host in fleet]
    assert max(totals) - min(totals) <= 12


@settings(deadline=None)
@given(seed=st.integers(0, 1000), loads=st.lists(st.integers(0, 20), min_size=2, max_size=6, unique=True))
def test_least_loaded_never_takes_the_busiest(seed: int, loads: list[int]) -> None:
    fleet = hosts(*loads)
    assert LeastLoaded(random.Random(seed)).choose("m", fleet, {}).others_in_flight < max(loads)


def test_waiting_requests_weigh_more_than_running_ones() -> None:
    small = Host("small", "1", "unix:s", "sim", pb.HOST_STATE_SERVING, others_in_flight=40, waiting=8)
    big = Host("big", "1", "unix:b", "sim", pb.HOST_STATE_SERVING, others_in_flight=64)
    assert LeastLoaded().choose("m", [small, big], {}) is big


@settings(deadline=None)
@given(count=st.integers(1, 6), rounds=st.integers(1, 5))
def test_round_robin_is_exact_for_each_model(count: int, rounds: int) -> None:
    fleet = hosts(*[0] * count)
    policy = RoundRobin()
    taken = {model: Counter(policy.choose(model, fleet, {}).name for _ in range(rounds * count)) for model in "ab"}
    assert all(set(counts.values()) == {rounds} and len(counts) == count for counts in taken.values())


def test_round_robin_goes_on_when_a_host_leaves() -> None:
    a, b, c = hosts(0, 0, 0)
    policy = RoundRobin()
    assert [policy.choose("m", [a, b, c], {}) for _ in range(2)] == [a, b]
    assert [policy.choose("m", [a, c], {}) for _ in range(3)] == [c, a, c]
