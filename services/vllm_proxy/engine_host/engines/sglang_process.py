"""The environment that SGLang and its processes run in, and what a killed one leaves on the disk."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

from vllm_proxy.common.settings import Sglang
from vllm_proxy.engine_host.engines.engine_owner import OWNER_VARIABLE, own_mark

#: Set unless the user did.
DEFAULTS = {
    # How often a waiting request asks whether its client is still there, seconds; SGLang's own is 4.
    "SGLANG_REQUEST_STATE_WAIT_TIMEOUT": "1",
    # Process titles would overwrite /proc/PID/environ, which leftovers are found by.
    "SPT_NOENV": "1",
}


def set_environment(sglang: Sglang) -> None:
    """Sets this process's environment for SGLang and its children. Before SGLang is imported, which reads it once."""
    # The host's own counters must not be taken for the edge's, which share files.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    os.environ.update(sglang.extra_env)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if sglang.lora.enabled and "lora_filesystem_resolver" in sglang.lora.runtime_resolver.plugins:
        sglang.lora.runtime_resolver.cache_dir.mkdir(parents=True, exist_ok=True)
    os.environ[OWNER_VARIABLE] = own_mark()


def log_to_standard_error(level: str) -> None:
    """What SGLang logs in this process goes where its children's lines go, and looks like them.

    SGLang itself would take over the root logger, which is the host's.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger = logging.getLogger("sglang")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def remove_files(port_args: Any) -> None:
    """Removes the sockets and the load figures of an engine whose processes were killed."""
    from sglang.srt.managers.load_snapshot import shm_path_for

    sockets = [v.removeprefix("ipc://") for v in vars(port_args).values() if isinstance(v, str) and "ipc://" in v]
    for path in (*sockets, shm_path_for(port_args.instance_id)):
        with contextlib.suppress(OSError):
            Path(path).unlink()
