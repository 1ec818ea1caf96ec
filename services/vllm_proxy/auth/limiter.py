"""Rate limits as leaky-bucket meters, in integers and with the caller's clock.

This is the continuous-state leaky bucket of GCRA (ATM Forum Traffic Management 4.1, section 4.4.2; ITU-T I.371,
annex A): every event adds to a level that leaks at the rate, and an event conforms if the level stays at or under
the capacity. One event weighs `Rate.unit`, and `Rate.leak` runs out each nanosecond; the two are whole numbers
for every rate, so nothing is ever rounded in the caller's favour.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

NS_PER_SECOND = 1_000_000_000
NS_PER_MINUTE = 60 * NS_PER_SECOND

#: Rates per second are taken as fractions with at most this denominator.
_MAX_DENOMINATOR = 1_000_000
#: Settled reservations that one bucket keeps apart before it merges them.
_MAX_SETTLED = 1024


@dataclass(frozen=True, slots=True)
class Rate:
    #: What one event adds to the level.
    unit: int
    #: What leaves the level in one nanosecond.
    leak: int
    #: The level that must not be exceeded.
    capacity: int

    @property
    def burst(self) -> int:
        """Events that may come at once."""
        return self.capacity // self.unit


@functools.lru_cache(maxsize=128)
def per_second(events: float) -> Rate:
    """Bursts are one second's worth, and at least one event."""
    fraction = Fraction(events).limit_denominator(_MAX_DENOMINATOR) or Fraction(events)
    unit = fraction.denominator * NS_PER_SECOND
    return Rate(unit, fraction.numerator, max(unit, fraction.numerator * NS_PER_SECOND))


@functools.lru_cache(maxsize=128)
def per_minute(events: int) -> Rate:
    """Bursts are one minute's worth."""
    return Rate(NS_PER_MINUTE, events, events * NS_PER_MINUTE)


class LimitState(NamedTuple):
    #: Events that may come at once, and how many of them would pass now.
    limit: int
    remaining: int
    #: Until all of them would, if nothing else comes.
    reset_ns: int


class Bucket:
    """One meter. Times are nanoseconds of any clock that does not run backwards."""

    __slots__ = ("level", "rate", "stamp_ns")

    def __init__(self, rate: Rate, now_ns: int) -> None:
        self.rate = rate
        self.level = 0
        self.stamp_ns = now_ns

    def advance(self, now_ns: int) -> None:
        elapsed = now_ns - self.stamp_ns
        if elapsed > 0:
            self.stamp_ns = now_ns
            if self.level:
                self._leak(elapsed * self.rate.leak)

    def _leak(self, amount: int) -> None:
        self.level = max(0, self.level - amount)

    def wait_ns(self, events: int, now_ns: int) -> int:
        """How long until `events` pass if nothing else comes; 0 if they pass now. Consumes nothing.

        More events than the burst never pass: cap them first.
        """
        self.advance(now_ns)
        excess = self.level + events * self.rate.unit - self.rate.capacity
        return -(-excess // self.rate.leak) if excess > 0 else 0

    def add(self, events: int, now_ns: int) -> None:
        """Counts events whether they conform or not: what goes over the capacity is debt that leaks first."""
        self.advance(now_ns)
        self.level += events * self.rate.unit

    def state(self, now_ns: int) -> LimitState:
        self.advance(now_ns)
        rate, level = self.rate, self.level
        return LimitState(
            rate.capacity // rate.unit, max(0, rate.capacity - level) // rate.unit, -(-level // rate.leak)
        )

    def change_rate(self, rate: Rate, now_ns: int) -> None:
        """Goes on with another rate; what is held keeps its number of events."""
        self.advance(now_ns)
        self.level = self.level * rate.unit // self.rate.unit
        self.rate = rate


class Reservation:
    """Events that a ReservingBucket holds for somebody, and its place in that bucket's stack."""

    __slots__ = ("above", "below", "bucket", "drained", "events", "held", "open")

    def __init__(self, bucket: ReservingBucket, events: int, held: int, below: Reservation | None) -> None:
        self.bucket = bucket
        self.events = events
        #: What of its level has not leaked yet.
        self.held = held
        self.below = below
        self.above: Reservation | None = None
        #: True once it holds nothing and has left the stack; `below` then only shows where it was.
        self.drained = False
        self.open = True

    def settle(self, events: int, now_ns: int) -> None:
        """Puts it right in the bucket that it was taken from. The first call counts."""
        self.bucket.settle(self, events, now_ns)


class ReservingBucket(Bucket):
    """A meter whose events may be put right later, as if the true number had come in the first place.

    Taking back `d` events that came at time t must not lower the level by more than what the meter has not been
    idle for since t: capacity that lay idle is lost. The level is therefore kept as a stack, one slice for each
    reservation, which leaks from the top. The slices at and below a reservation are what has never run dry since
    it came, and what is taken back comes off them, from its own slice downwards. The result equals a replay with
    the true numbers, exactly, at amortised constant cost.

    Under the stack lies what came before every open reservation: one number. A bucket that nobody holds anything of
    is only a level, like any other.
    """

    __slots__ = ("_ground", "_open", "_settled", "_top")

    def __init__(self, rate: Rate, now_ns: int) -> None:
        super().__init__(rate, now_ns)
        self._top: Reservation | None = None
        #: The level under the stack; counts only while somebody holds something.
        self._ground = 0
        self._open = 0
        self._settled = 0

    def reserve(self, events: int, now_ns: int) -> Reservation:
        """Counts events that may be put right by `settle`."""
        self.advance(now_ns)
        if not self._open:
            self._ground = self.level
        self._open += 1
        held = events * self.rate.unit
        self.level += held
        reservation = Reservation(self, events, held, self._top)
        if held:
            if self._top is not None:
                self._top.above = reservation
            self._top = reservation
        else:
            reservation.drained = True
        return reservation

    def add(self, events: int, now_ns: int) -> None:
        if self._open:
            self._close(self.reserve(events, now_ns))
        else:
            super().add(events, now_ns)

    def settle(self, reservation: Reservation, events: int, now_ns: int) -> None:
        """Puts a reservation right, once. Fewer events are taken back; more are counted now, as debt if need be."""
        self.advance(now_ns)
        if not reservation.open:
            return
        surplus = (reservation.events - events) * self.rate.unit
        node: Reservation | None = reservation
        while surplus > 0 and (node := self._live(node)) is not None:
            taken = min(surplus, node.held)
            surplus -= taken
            self._take(node, taken)
        if surplus > 0:
            self._take_ground(surplus)
        self._close(reservation)
        if surplus < 0:
            self.add(events - reservation.events, now_ns)

    def change_rate(self, rate: Rate, now_ns: int) -> None:
        self.advance(now_ns)
        if not self._open:
            super().change_rate(rate, now_ns)
            return
        level = self._ground = self._ground * rate.unit // self.rate.unit
        node = self._top
        while node is not None:
            node.held = node.held * rate.unit // self.rate.unit
            level += node.held
            node = node.below
        self.rate, self.level = rate, level

    def _leak(self, amount: int) -> None:
        if not self._open:
            super()._leak(amount)
            return
        while amount > 0 and self._top is not None:
            taken = min(amount, self._top.held)
            amount -= taken
            self._take(self._top, taken)
        self._take_ground(amount)

    def _take_ground(self, amount: int) -> None:
        taken = min(amount, self._ground)
        self.level -= taken
        self._ground -= taken

    def _take(self, node: Reservation, amount: int) -> None:
        self.level -= amount
        node.held -= amount
        if not node.held:
            self._unlink(node)

    def _unlink(self, node: Reservation) -> None:
        node.drained = True
        if node.above is None:
            self._top = node.below
        else:
            node.above.below = node.below
        if node.below is not None:
            node.below.above = node.above
        node.above = None
        if not node.open:
            self._settled -= 1

    @staticmethod
    def _live(node: Reservation | None) -> Reservation | None:
        """The first slice at or below `node` that holds something; shortens the way for the next one."""
        while node is not None and node.drained:
            below = node.below
            if below is not None and below.drained:
                node.below = below.below
            node = below
        return node

    def _close(self, reservation: Reservation) -> None:
        reservation.open = False
        self._open -= 1
        if not self._open:
            # Nothing can be put right any more, so that it does not matter which slice leaks first.
            self._top, self._ground, self._settled = None, 0, 0
        elif not reservation.drained:
            self._settled += 1
            if self._settled > _MAX_SETTLED:
                self._merge_settled()

    def _merge_settled(self) -> None:
        """Joins each settled slice to the one above it. What was taken back from between the two then takes
        nothing from the lower one: the level errs upwards, never over the limit."""
        node = self._top
        while node is not None:
            below = node.below
            if not node.open and node.above is not None:
                node.above.held += node.held
                node.held = 0
                self._unlink(node)
            node = below
