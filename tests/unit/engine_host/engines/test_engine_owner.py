from __future__ import annotations

import os
import subprocess
import sys

from tests.support.wait import wait_until

from vllm_proxy.engine_host.engines import engine_owner
from vllm_proxy.engine_host.engines.engine_owner import OWNER_VARIABLE


def test_leftovers_of_a_dead_host_are_killed_and_others_are_not() -> None:
    def sleeper(mark: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={OWNER_VARIABLE: mark})

    # The process id is alive, but it is another process than the one that wrote the mark.
    orphan, ours = sleeper(f"{os.getpid()}:1"), sleeper(engine_owner.own_mark())
    try:
        marks = {orphan.pid, ours.pid}
        wait_until(lambda: marks <= {pid for pid, _ in engine_owner._marked()}, "both marked")
        assert orphan.pid in engine_owner.reap_leftovers()
        assert orphan.wait(5) == -9
        assert ours.poll() is None
        assert ours.pid in engine_owner.reap_own()
    finally:
        for process in (orphan, ours):
            process.kill()
            process.communicate()
