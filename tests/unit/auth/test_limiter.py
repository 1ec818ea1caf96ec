from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_proxy.auth import limiter
from vllm_proxy.auth.limiter import NS_PER_SECOND, Bucket, Reservation, ReservingBucket, per_minute, per_second

RATES = st.one_of(
    st.floats(min_value=0.01, max_value=10_000, allow_nan=False).map(per_second),
    st.integers(min_value=1, max_value=10_000_000).map(per_minute),
)
GAPS_NS = st.one_of(st.just(0), st.integers(0, 50_000_000), st.integers(0, 200 * NS_PER_SECOND))


@pytest.mark.parametrize(("qps", "burst"), [(0.1, 1), (1, 1), (2.5, 2), (3, 3), (7, 7), (1000, 1000)])
def test_a_burst_is_one_second_of_requests_and_at_least_one(qps: float, burst: int) -> None:
    bucket = Bucket(per_second(qps), 0)
    passed = 0
    while bucket.wait_ns(1, 0) == 0:
        bucket.add(1, 0)
        passed += 1
    assert passed == burst == bucket.rate.burst


def test_a_burst_of_tokens_is_one_minute() -> None:
    bucket = Bucket(per_minute(600), 0)
    assert bucket.wait_ns(600, 0) == 0
    bucket.add(600, 0)
    assert bucket.wait_ns(1, 0) == NS_PER_SECOND // 10
    assert bucket.state(0) == (600, 0, 60 * NS_PER_SECOND)
    assert bucket.state(30 * NS_PER_SECOND) == (600, 300, 30 * NS_PER_SECOND)


@given(RATES, st.lists(st.tuples(GAPS_NS, st.floats(0, 1)), max_size=60))
def test_no_window_ever_holds_more_than_burst_plus_rate(rate: limiter.Rate, tries: list[tuple[int, float]]) -> None:
    bucket, now = Bucket(rate, 0), 0
    passed: list[tuple[int, int]] = []
    for gap, share in tries:
        now += gap
        events = max(1, int(share * rate.burst))
        if bucket.wait_ns(events, now) == 0:
            bucket.add(events, now)
            passed.append((now, events))
    for first, (begin, _) in enumerate(passed):
        total = 0
        for end, events in passed[first:]:
            total += events
            assert total * rate.unit <= rate.capacity + (end - begin) * rate.leak


@given(RATES, st.lists(st.tuples(GAPS_NS, st.floats(0, 2)), max_size=30), st.floats(0, 1))
def test_the_wait_is_exact(rate: limiter.Rate, history: list[tuple[int, float]], share: float) -> None:
    bucket, now = Bucket(rate, 0), 0
    for gap, part in history:
        now += gap
        bucket.add(int(part * rate.burst), now)
    events = max(1, int(share * rate.burst))
    wait = bucket.wait_ns(events, now)
    if wait:
        assert bucket.wait_ns(events, now + wait - 1) == 1
    assert bucket.wait_ns(events, now + wait) == 0


def replay(rate: limiter.Rate, arrivals: list[tuple[int, int]], now: int) -> int:
    level = stamp = 0
    for at, events in sorted(arrivals, key=lambda arrival: arrival[0]):
        level = max(0, level - (at - stamp) * rate.leak) + events * rate.unit
        stamp = at
    return max(0, level - (now - stamp) * rate.leak)


STEPS = st.lists(
    st.tuples(
        st.one_of(st.just(0), st.integers(0, 20 * NS_PER_SECOND)), st.booleans(), st.floats(0, 1), st.floats(0, 1)
    ),
    max_size=60,
)


@given(STEPS)
def test_putting_reservations_right_equals_a_replay_with_the_truth(
    steps: list[tuple[int, bool, float, float]],
) -> None:
    rate = per_minute(1000)
    bucket, now = ReservingBucket(rate, 0), 0
    arrivals: list[tuple[int, int]] = []
    open_ones: list[tuple[int, Reservation]] = []
    for gap, settles, which, share in steps:
        now += gap
        if settles and open_ones:
            index, reservation = open_ones.pop(int(which * (len(open_ones) - 1)))
            truth = int(share * reservation.events)
            reservation.settle(truth, now)
            arrivals[index] = (arrivals[index][0], truth)
        else:
            open_ones.append((len(arrivals), bucket.reserve(int(share * 1000), now)))
            arrivals.append((now, int(share * 1000)))
        bucket.advance(now)
        assert bucket.level == replay(rate, arrivals, now)


@given(STEPS)
def test_merging_settled_slices_only_errs_upwards(steps: list[tuple[int, bool, float, float]]) -> None:
    rate = per_minute(1000)
    exact, merged, now = ReservingBucket(rate, 0), ReservingBucket(rate, 0), 0
    open_ones: list[tuple[Reservation, Reservation]] = []
    for gap, settles, which, share in steps:
        now += gap
        if settles and open_ones:
            for reservation in open_ones.pop(int(which * (len(open_ones) - 1))):
                reservation.settle(int(share * reservation.events), now)
            merged._merge_settled()
        else:
            open_ones.append((exact.reserve(int(share * 1000), now), merged.reserve(int(share * 1000), now)))
        exact.advance(now)
        merged.advance(now)
        assert merged.level >= exact.level
        slices, node = merged._ground if merged._open else merged.level, merged._top
        while node is not None:
            slices += node.held
            node = node.below
        assert slices == merged.level


def test_many_settled_slices_do_not_pile_up() -> None:
    bucket = ReservingBucket(per_minute(10_000_000), 0)
    first = bucket.reserve(10, 0)
    for _ in range(5000):
        bucket.reserve(10, 0).settle(9, 0)
    count, node = 0, bucket._top
    while node is not None:
        count, node = count + 1, node.below
    assert count <= limiter._MAX_SETTLED + 2
    first.settle(9, 0)
    assert bucket._top is None, "nobody can put anything right any more"
    assert bucket.level == 5001 * 9 * bucket.rate.unit


def test_what_a_response_exceeds_its_reservation_by_is_debt() -> None:
    bucket = ReservingBucket(per_minute(60), 0)
    bucket.reserve(60, 0).settle(180, 0)
    assert bucket.wait_ns(1, 0) == 121 * NS_PER_SECOND
    assert bucket.state(0).remaining == 0


def test_capacity_that_lay_idle_is_not_given_back() -> None:
    bucket = ReservingBucket(per_minute(1000), 0)
    early = bucket.reserve(1000, 0)
    late = bucket.reserve(1000, 61 * NS_PER_SECOND)
    early.settle(0, 61 * NS_PER_SECOND)
    assert bucket.state(61 * NS_PER_SECOND).remaining == 0
    late.settle(0, 61 * NS_PER_SECOND)
    assert bucket.state(61 * NS_PER_SECOND).remaining == 1000


def test_a_reservation_is_put_right_once() -> None:
    bucket = ReservingBucket(per_minute(1000), 0)
    reservation = bucket.reserve(500, 0)
    bucket.reserve(100, 0)
    reservation.settle(0, 0)
    reservation.settle(0, 0)
    assert bucket.state(0).remaining == 900


@given(st.integers(1, 10**7), st.integers(1, 10**7), st.lists(st.integers(1, 10**6), max_size=5))
def test_a_changed_rate_keeps_what_is_used(before: int, after: int, held: list[int]) -> None:
    bucket = ReservingBucket(per_minute(before), 0)
    reservations = [bucket.reserve(events, 0) for events in held]
    bucket.change_rate(per_minute(after), 0)
    assert bucket.state(0).remaining == max(0, after - sum(held))
    for reservation in reservations:
        reservation.settle(0, 0)
    assert bucket.level == 0


def test_a_changed_fractional_rate_keeps_requests() -> None:
    bucket = Bucket(per_second(2.5), 0)
    bucket.add(2, 0)
    bucket.change_rate(per_second(10), 0)
    assert bucket.state(0).remaining == 8
