"""A folder with log files."""

from __future__ import annotations

import os
import time
from pathlib import Path

from vllm_proxy.common.log_folder import SECONDS_PER_DAY


def folder_of_logs(logs: Path) -> Path:
    """Two services' files of different ages, ten bytes each, and what is nobody's log."""
    logs.mkdir()
    for name, age_days in {
        "auth.log": 100,
        "auth.log.1": 1,
        "auth.log.2.gz": 10,
        "authority.log.1": 100,
        "router.log.1": 100,
        "notes.txt": 100,
    }.items():
        path = logs / name
        path.write_bytes(b"x" * 10)
        then = time.time() - age_days * SECONDS_PER_DAY - 60
        os.utime(path, (then, then))
    return logs
