"""The doctor while services run: nothing to find, then one of them is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.integration.conftest import StartCluster
from tests.support.cluster import Cluster

from vllm_proxy.api.auth.v1 import auth_pb2

TIMEOUT_S = 60


def examined(cluster: Cluster) -> tuple[int, list[dict[str, Any]]]:
    """The exit code and the findings."""
    done = subprocess.run(
        [sys.executable, "-m", "vllm_proxy.cli", "--config", str(cluster.config_path), "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


def test_what_runs_is_well_until_a_part_of_it_is_gone(start_cluster: StartCluster) -> None:
    cluster = start_cluster(workers=2)
    spec = auth_pb2.KeySpec(user="late", expires_at_ms=1)
    made = cluster.control.auth.CreateKey(auth_pb2.CreateKeyRequest(spec=spec), timeout=10).key.key_id
    status, rows = examined(cluster)
    assert (status, [row for row in rows if row["verdict"] == "fail"]) == (0, [])
    said = {row["check"]: row["what"] for row in rows}
    assert said["ports"] == f"{cluster.port} ours"
    assert all(name in said["services"] for name in ("auth", "router", "engine-sim", "edge-"))
    assert said["engines"] == "sim serves sim"
    assert "every service the same" in said["versions"]
    assert "agree" in said["clocks"]
    (expired,) = [row for row in rows if row["check"] == "made keys"]
    assert expired["verdict"] == "warn" and f"keys update {made} --expires 30d" in expired["fix"]

    cluster.auth.stop()
    status, rows = examined(cluster)
    (fault,) = [row for row in rows if row["verdict"] == "fail"]
    assert status == 1
    assert fault["what"] == "auth does not answer: nobody answers"
    assert "logs/auth.log" in fault["fix"]
