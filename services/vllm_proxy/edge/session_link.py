"""One long-lived bidirectional gRPC stream to another service: batches out, messages in, reconnection.

While a message is being written, what becomes ready waits, and goes out as the next message: a batch grows by
itself under load and costs no delay without it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any, Protocol

import grpc
import grpc.aio

from vllm_proxy.common.settings import Grpc

log = logging.getLogger(__name__)


class SessionPeer(Protocol):
    """What is spoken over a link. All methods are called on the event loop and must not block."""

    def hello(self) -> Any:
        """The first message of a new stream."""

    def next_batch(self) -> Any | None:
        """What is ready to be written (at most 1 MiB), or None. What it returns is not asked for again."""

    def received(self, message: Any) -> None: ...

    def lost(self) -> None:
        """The stream is gone, with everything that was on its way. Called once for each stream that `hello` opened."""


class SessionLink:
    """Keeps a stream to one peer open. `run` returns only after `finish`; `wake` says that `next_batch` has
    something."""

    def __init__(self, name: str, open_call: Callable[[], Any], peer: SessionPeer, settings: Grpc) -> None:
        """`open_call` starts the stream-stream call, with `wait_for_ready`."""
        self._name = name
        self._open_call = open_call
        self._peer = peer
        self._min_s = settings.reconnect_min_s
        self._max_s = settings.reconnect_max_s
        self._ready = asyncio.Event()
        self._later: asyncio.TimerHandle | None = None
        self.wake = self._ready.set
        #: True from the peer's first message until the stream breaks.
        self.connected = False
        self._finishing = False
        self._call: Any = None
        self._given_up = False

    def wake_within(self, delay_s: float) -> None:
        """Like `wake`, for what nobody waits for: it goes with the next message, or alone after `delay_s`."""
        if self._later is None and not self._ready.is_set():
            self._later = asyncio.get_running_loop().call_later(delay_s, self._wake_now)

    def give_up(self) -> None:
        """Ends the stream, if there is one, as if it had broken."""
        if self._call is not None:
            self._given_up = True
            self._call.cancel()

    def finish(self) -> None:
        """Sends what is ready, then ends the stream in good order."""
        self._finishing = True
        self.wake()

    def _wake_now(self) -> None:
        self._later = None
        self._ready.set()

    async def run(self) -> None:
        delay_s = self._min_s
        while not self._finishing:
            if await self._session():
                delay_s = self._min_s
            if self._finishing:
                return
            # Jitter, so that the edges of a restarted peer do not come back in step.
            await asyncio.sleep(random.uniform(self._min_s / 2, delay_s))
            delay_s = min(delay_s * 2, self._max_s)

    async def _session(self) -> bool:
        """One stream from its start to its end. Returns whether the peer ever answered."""
        self._call = call = self._open_call()
        self._given_up = answered = False
        detail = "closed by the peer"
        writer = asyncio.create_task(self._write(call), name=f"{self._name}-writer")
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                if not answered:
                    answered = self.connected = True
                    log.info("session open", extra={"peer": self._name})
                self._peer.received(message)
        except grpc.aio.AioRpcError as e:
            detail = f"{e.code().name}: {e.details()}"
        except asyncio.CancelledError:
            # Raised by the call; unless it is this task that somebody cancels.
            if not self._given_up or (task := asyncio.current_task()) is None or task.cancelling():
                raise
            detail = "given up: the peer is silent"
        except Exception:
            detail = "a message could not be used"
            log.exception("session failed", extra={"peer": self._name})
        finally:
            self.connected = False
            self._call = None
            call.cancel()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            self._peer.lost()
        log.log(
            logging.WARNING if answered and not self._finishing else logging.DEBUG,
            "session lost",
            extra={"peer": self._name, "detail": detail},
        )
        return answered

    async def _write(self, call: Any) -> None:
        try:
            await call.write(self._peer.hello())
            while True:
                self._ready.clear()
                if self._later is not None:
                    self._later.cancel()
                    self._later = None
                batch = self._peer.next_batch()
                if batch is None:
                    if self._finishing:
                        await call.done_writing()
                        return
                    await self._ready.wait()
                else:
                    await call.write(batch)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # The reader sees why.
        except Exception:
            log.exception("session writer failed", extra={"peer": self._name})
            call.cancel()
