"""Notices that config.yaml changed and hands the new settings to whoever follows them.

A file that cannot be used changes nothing and is said so in the log, once per version of the file.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from vllm_proxy.common.settings import ConfigError, Settings, load_settings

log = logging.getLogger(__name__)


async def watch_settings(path: Path, apply: Callable[[Settings], None], interval_s: float = 0.5) -> None:
    """Calls `apply` after each change of `path`, until cancelled.

    A file that is being written in place is read once it has kept still for an interval.
    """
    seen = before = _stamp(path)
    while True:
        await asyncio.sleep(interval_s)
        stamp = _stamp(path)
        still, before = stamp == before, stamp
        if stamp == seen or not still:
            continue
        seen = stamp
        try:
            loaded = await asyncio.to_thread(load_settings, path)
        except ConfigError as e:
            log.error("configuration not applied", extra={"detail": str(e)})
            continue
        except Exception:
            log.exception("configuration not applied")
            continue
        apply(loaded.settings)
        log.info("configuration applied", extra={"path": str(path)})


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
