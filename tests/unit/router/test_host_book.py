"""When a host is in the table, with a clock that the test moves."""

import pytest

from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.common.errors import EngineUnavailable, InvalidRequest, PermissionDenied
from vllm_proxy.router.hosts import DEPARTED_MEMORY_S, HostBook

TIMEOUT_S = 2.5
SETTLE_S = 3.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Book:
    """A HostBook that notes what it announces."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.changes: list[str] = []
        self.loads = 0
        self.book = HostBook(TIMEOUT_S, SETTLE_S, clock=self.clock, wall_clock=lambda: 1.5)
        self.book.on_change.append(self.changes.append)
        self.book.on_load.append(self._load)

    def _load(self) -> None:
        self.loads += 1

    def advance(self, seconds: float) -> None:
        self.clock.now_s += seconds
        self.book.expire()

    def names(self) -> list[str]:
        return [report.name for report in self.book.table()]


@pytest.fixture
async def book() -> Book:
    return Book()


def report(name: str = "h", incarnation: str = "1", *, running: int = 0, card: bytes = b"{}") -> pb.Host:
    return pb.Host(
        name=name,
        incarnation=incarnation,
        address=f"unix:{name}",
        state=pb.HOST_STATE_SERVING,
        models=[pb.Model(name="m", card_json=card)],
        load=pb.HostLoad(running=running),
    )


async def test_host_is_in_from_its_first_report_until_it_is_silent(book: Book) -> None:
    link = book.book.attach(report())
    assert book.names() == ["h"]
    assert book.book.table()[0].last_seen_ms == 1500
    book.advance(TIMEOUT_S - 0.1)
    assert book.book.report(link, report())
    book.advance(TIMEOUT_S - 0.1)
    assert book.names() == ["h"]
    book.advance(0.2)
    assert book.names() == []
    assert book.changes == ["h", "h"]


async def test_silent_host_returns_with_its_next_report(book: Book) -> None:
    link = book.book.attach(report())
    book.advance(TIMEOUT_S + 1)
    assert book.names() == []
    assert book.book.report(link, report())
    assert book.names() == ["h"]


async def test_broken_stream_takes_a_host_out_at_once(book: Book) -> None:
    link = book.book.attach(report())
    book.book.detach(link)
    assert book.names() == []
    assert book.book.absent_models() == ["m"]
    (shown,) = book.book.everyone()
    assert (shown.state, shown.detail) == (pb.HOST_STATE_DOWN, "its connection ended")
    assert book.book.find("h") is None


async def test_departed_host_is_forgotten_in_the_end(book: Book) -> None:
    book.book.detach(book.book.attach(report()))
    book.advance(DEPARTED_MEMORY_S + 1)
    assert book.book.everyone() == []
    assert book.book.absent_models() == []
    assert book.changes == ["h", "h", "h"]


async def test_models_of_another_live_host_are_not_absent(book: Book) -> None:
    book.book.attach(report("a"))
    book.book.detach(book.book.attach(report("b")))
    assert book.book.absent_models() == []


async def test_new_incarnation_replaces_the_old_one_whose_stream_is_still_open(book: Book) -> None:
    old = book.book.attach(report(incarnation="1"))
    waiting = old.load(pb.AdapterSpec(name="x"))
    book.book.attach(report(incarnation="2"))
    assert old.closed
    assert not book.book.report(old, report(incarnation="1"))
    book.book.detach(old)
    assert [r.incarnation for r in book.book.table()] == ["2"]
    assert isinstance(waiting.exception(), EngineUnavailable)


async def test_two_processes_with_one_name_do_not_take_turns(book: Book) -> None:
    book.book.attach(report(incarnation="1"))
    book.book.attach(report(incarnation="2"))
    with pytest.raises(PermissionDenied):
        book.book.attach(report(incarnation="1"))
    assert [r.incarnation for r in book.book.table()] == ["2"]


async def test_commands_outlive_a_stream_of_the_same_process(book: Book) -> None:
    first = book.book.attach(report())
    answer = first.load(pb.AdapterSpec(name="x"))
    (sent,) = await first.outgoing()
    book.book.detach(first)
    second = book.book.attach(report())
    assert await second.outgoing() == [sent]
    second.resolve(pb.CommandResult(command_id=sent.command_id))
    assert answer.result().reason == ""


async def test_commands_fail_when_the_host_stays_away(book: Book) -> None:
    link = book.book.attach(report())
    answer = link.load(pb.AdapterSpec(name="x"))
    book.book.detach(link)
    assert not answer.done()
    book.advance(TIMEOUT_S + 0.1)
    assert isinstance(answer.exception(), EngineUnavailable)


async def test_load_alone_and_fresh_cards_are_not_a_change(book: Book) -> None:
    link = book.book.attach(report())
    book.book.report(link, report(running=3))
    book.book.report(link, report(running=3, card=b'{"created":2}'))
    assert book.changes == ["h"]
    assert book.loads == 1
    assert book.book.table()[0].models[0].card_json == b'{"created":2}'


async def test_restored_hosts_are_assumed_until_they_return_or_time_is_over(book: Book) -> None:
    book.book.restore([report("a"), report("b")])
    assert book.names() == ["a", "b"]
    assert book.book.live() == []
    book.book.attach(report("a"))
    book.advance(SETTLE_S - 0.1)
    assert "b" in book.names()
    book.advance(0.2)
    assert "b" not in book.names()
    await book.book.settled()


async def test_report_without_a_name_is_refused(book: Book) -> None:
    with pytest.raises(InvalidRequest):
        book.book.attach(pb.Host(incarnation="1", address="unix:x"))


async def test_command_that_nobody_waits_for_is_not_sent_again(book: Book) -> None:
    first = book.book.attach(report())
    given_up = first.load(pb.AdapterSpec(name="x"))
    await first.outgoing()
    book.book.detach(first)
    given_up.cancel()
    second = book.book.attach(report())
    second.unload("y")
    assert [command.unload for command in await second.outgoing()] == ["y"]


async def test_report_in_another_name_is_refused(book: Book) -> None:
    link = book.book.attach(report("a"))
    with pytest.raises(InvalidRequest):
        book.book.report(link, report("b"))


async def test_models_of_a_host_that_starts_again_are_absent_until_it_serves(book: Book) -> None:
    book.book.attach(report())
    starting = pb.Host(name="h", incarnation="2", address="unix:h", state=pb.HOST_STATE_STARTING)
    link = book.book.attach(starting)
    assert book.names() == ["h"]
    assert book.book.absent_models() == ["m"]
    other = report(incarnation="2")
    other.models[0].name = "other"
    book.book.report(link, other)
    assert book.book.absent_models() == []
