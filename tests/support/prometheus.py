"""A real Prometheus that scrapes a site, and what is asked of it."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Self

from tests.support.cluster import free_port
from tests.support.tools import tool
from tests.support.wait import wait_until

SHIPPED = Path(__file__).parents[2] / "config" / "prometheus"
INTERVAL = "500ms"
START_DEADLINE_S = 20.0
STOP_DEADLINE_S = 10.0


class Prometheus:
    """The shipped configuration with another address of the edge and a pace that suits tests. A context manager."""

    def __init__(self, edge_port: int, folder: Path) -> None:
        self._program = tool("prometheus")
        self._folder = folder
        self._port = free_port()
        shipped = (SHIPPED / "prometheus.yml").read_text()
        assert "http://127.0.0.1:8001/" in shipped and "127.0.0.1:8002" in shipped
        (folder / "prometheus.yml").write_text(
            shipped.replace("127.0.0.1:8001", f"127.0.0.1:{edge_port}").replace("15s", INTERVAL)
        )
        for name in ("rules.yml", "alerts.yml"):
            (folder / name).write_text((SHIPPED / name).read_text())

    def __enter__(self) -> Self:
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    str(self._program),
                    f"--config.file={self._folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                ],
                stdout=log,
                stderr=log,
            )
        wait_until(self._is_ready, "Prometheus ready", START_DEADLINE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector. Raises AssertionError with Prometheus' words if it does not parse."""
        answer = self._get("query", {"query": expression})
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def alerts(self) -> list[dict[str, Any]]:
        """All alert rules, with their state and health."""
        groups = self._get("rules", {"type": "alert"})["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, (self._folder / "prometheus.log").read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _get(self, what: str, parameters: dict[str, str]) -> Any:
        url = f"http://127.0.0.1:{self._port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as e:
            raise AssertionError(f"{parameters}: {json.load(e).get('error')}") from None
