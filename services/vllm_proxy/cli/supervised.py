"""What supervisord says of its processes, asked on its own socket; and whether what a pid file names still lives."""

from __future__ import annotations

import http.client
import socket
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_proxy.common.settings import Settings

CALL_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One process as supervisord sees it. `pid` is 0 when there is none."""

    service: str
    name: str
    state: str
    pid: int
    started_at: int
    fault: str

    @property
    def is_up(self) -> bool:
        return self.state in ("STARTING", "RUNNING", "BACKOFF", "STOPPING")

    @property
    def has_ended(self) -> bool:
        """Whether it can be started."""
        return self.state in ("STOPPED", "EXITED", "FATAL")


def control_socket(settings: Settings) -> str:
    """supervisord's own socket, relative to the project's root."""
    return str(settings.run_dir / "supervisor.sock")


def call(socket_path: str | Path, method: str, *arguments: Any) -> Any:
    """Raises OSError or HTTPException if nobody answers, xmlrpc.client.Fault if it says no."""
    proxy = xmlrpc.client.ServerProxy("http://supervisor", transport=_UnixTransport(str(socket_path)))
    with proxy:
        return getattr(proxy.supervisor, method)(*arguments)


def processes(rows: list[dict[str, Any]]) -> list[ProcessState]:
    """From the answer to getAllProcessInfo."""
    return [
        ProcessState(
            service=row["group"],
            name=row["name"],
            state=row["statename"],
            pid=row["pid"],
            started_at=row["start"],
            fault=row["spawnerr"] or (f"exit status {row['exitstatus']}" if row["exitstatus"] else ""),
        )
        for row in rows
    ]


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return _UnixConnection(self._path)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=CALL_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connecting.settimeout(self.timeout)
            connecting.connect(self._path)
        except OSError:
            connecting.close()
            raise
        self.sock = connecting
