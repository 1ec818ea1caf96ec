"""Puts a changed configuration in force while a service runs: when a file changes, on SIGHUP, and when it is asked to.

Whatever the cause, the same happens: the files are read and checked as a whole, one that cannot be used changes
nothing, and what has to wait for a restart is named. What a service does with its settings is its own.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_proxy.common.lifecycle import cancel_all
from vllm_proxy.common.setting_effects import applies, roles_of, values_of, waiting
from vllm_proxy.common.settings import ConfigError, LoadedSettings, load_settings

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.5
_ABSENT = object()


@dataclass(slots=True)
class Outcome:
    """What came of a reload."""

    #: Dotted keys.
    applied: list[str] = field(default_factory=list)
    #: (dotted key, what has to be restarted).
    needs_restart: list[tuple[str, str]] = field(default_factory=list)
    #: What went wrong beside the settings, a line each.
    problems: list[str] = field(default_factory=list)


#: Puts what was prepared in force. Adds to the outcome what is no setting.
Commit = Callable[[Outcome], Awaitable[None]]
#: Reads and checks what a configuration means for a service, in a thread, and changes nothing. Raises ConfigError.
Prepare = Callable[[LoadedSettings], Commit]


class Reloader:
    """The settings of one service that are in force. `run` it; `close` it at the end."""

    def __init__(
        self,
        service: str,
        loaded: LoadedSettings,
        prepare: Prepare,
        files: Sequence[Path] = (),
        interval_s: float = WATCH_INTERVAL_S,
    ) -> None:
        """`service` is its name in the log; `files` are watched beside the configuration itself."""
        self.service = service
        self.path = loaded.path
        self._overrides = loaded.overrides
        self._prepare = prepare
        self._files = (loaded.path, *files)
        self._interval_s = interval_s
        self._roles = roles_of(service, loaded)
        #: What the process was started with, and what of it is in force by now.
        self._started = values_of(loaded, service)
        self._in_force = dict(self._started)
        self._shown: dict[str, Any] = loaded.settings.model_dump(mode="json")
        self._level = loaded.settings.log_level_of(service)
        self._seen = self._stamps()
        self._one_at_a_time = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def settings(self) -> dict[str, Any]:
        """All settings as they are in force in this process, as JSON has them."""
        return copy.deepcopy(self._shown)

    async def run(self, hangup: asyncio.Event) -> None:
        """Reloads after each change of a file and whenever `hangup` is set, until cancelled.

        A file that is being written in place is read once it has kept still for an interval.
        """
        before = self._seen
        while True:
            try:
                async with asyncio.timeout(self._interval_s):
                    await hangup.wait()
            except TimeoutError:
                stamps = self._stamps()
                still, before = stamps == before, stamps
                if stamps == self._seen or not still:
                    continue
                trigger = "file"
            else:
                hangup.clear()
                trigger = "SIGHUP"
            try:
                await self.reload(trigger)
            except ConfigError:
                pass  # said in the log
            except Exception:
                log.exception("configuration not applied", extra={"trigger": trigger})

    async def reload(self, trigger: str) -> Outcome:
        """Raises ConfigError if a file cannot be used; everything is as it was then. Goes on if the caller leaves."""
        task = asyncio.create_task(self._reload(trigger), name="reload")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    def set_log_level(self, level: str | None) -> str:
        """None: the configuration's. Returns the level before."""
        root = logging.getLogger()
        before = logging.getLevelName(root.level)
        root.setLevel(level or self._level)
        log.warning("log level changed", extra={"now": level or self._level, "before": before})
        return before

    async def close(self) -> None:
        await cancel_all(self._tasks)

    async def _reload(self, trigger: str) -> Outcome:
        async with self._one_at_a_time:
            self._seen = self._stamps()
            try:
                loaded, commit = await asyncio.to_thread(self._read)
            except ConfigError as e:
                log.error("configuration not applied", extra={"trigger": trigger, "detail": str(e)})
                raise
            outcome = Outcome()
            await commit(outcome)
            self._take(loaded, outcome)
        level = logging.WARNING if outcome.needs_restart or outcome.problems else logging.INFO
        log.log(
            level,
            "configuration applied",
            extra={
                "trigger": trigger,
                "path": str(self.path),
                "applied": outcome.applied,
                "needs_restart": [f"{setting} ({service})" for setting, service in outcome.needs_restart],
                "problems": outcome.problems,
            },
        )
        return outcome

    def _read(self) -> tuple[LoadedSettings, Commit]:
        loaded = load_settings(self.path, self._overrides)
        return loaded, self._prepare(loaded)

    def _take(self, loaded: LoadedSettings, outcome: Outcome) -> None:
        """Books what is in force now and says what is not."""
        new = values_of(loaded, self.service)
        dump = loaded.settings.model_dump(mode="json")
        for path in [*new, *(path for path in self._in_force if path not in new)]:
            value = new.get(path, _ABSENT)
            if applies(path, self.service, self._roles):
                if value != self._in_force.get(path, _ABSENT):
                    outcome.applied.append(".".join(path))
                    _copy(dump, self._shown, path)
                    if value is _ABSENT:
                        del self._in_force[path]
                    else:
                        self._in_force[path] = value
            elif value != self._started.get(path, _ABSENT):
                for service in waiting(path, self.service, self._roles):
                    outcome.needs_restart.append((".".join(path), service))
        level = loaded.settings.log_level_of(self.service)
        if level != self._level:
            self._level = level
            logging.getLogger().setLevel(level)

    def _stamps(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(stamp(path) for path in self._files)


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Changes when a file does; None if it is not there."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _copy(source: dict[str, Any], target: dict[str, Any], path: tuple[str, ...]) -> None:
    """Makes `target` have at `path` what `source` has there, which may be nothing."""
    *above, last = path
    for name in above:
        source, target = source.get(name, {}), target.setdefault(name, {})
    if last in source:
        target[last] = source[last]
    else:
        target.pop(last, None)
