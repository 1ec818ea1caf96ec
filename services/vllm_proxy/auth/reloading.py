"""The files that the auth service follows: the declared keys, and what it puts in force of a changed configuration."""

from __future__ import annotations

from pathlib import Path

from vllm_proxy.auth.admission import Admission
from vllm_proxy.auth.config import AuthConfig
from vllm_proxy.auth.keys import ApiKey
from vllm_proxy.auth.keys_file import DeclaredKeys, UnreadableKeysFile, create_if_missing, load_keys, warn_about_keys
from vllm_proxy.common.reload import Commit, Outcome, stamp
from vllm_proxy.common.settings import ConfigError, LoadedSettings


class ReloadedFiles:
    """Reads the keys again only if their file changed: it may hold a million."""

    def __init__(self, keys_file: Path) -> None:
        self._keys_file = keys_file
        #: Of the keys that are in force.
        self._stamp: tuple[int, int, int] | None = None
        #: Needed before the first commit.
        self.admission: Admission

    def declared_keys(self) -> list[ApiKey]:
        """At the start; the file is made if it is missing. Raises ConfigError."""
        try:
            create_if_missing(self._keys_file)
        except OSError as e:
            raise ConfigError(f"api_keys_file: {self._keys_file}: cannot be created: {e.strerror}") from None
        self._stamp = stamp(self._keys_file)
        declared = self._read()
        warn_about_keys(self._keys_file, declared)
        return declared.keys

    def prepare(self, loaded: LoadedSettings) -> Commit:
        config = AuthConfig.from_settings(loaded.settings)
        seen = stamp(self._keys_file)
        declared = self._read() if seen != self._stamp else None

        async def commit(outcome: Outcome) -> None:
            self.admission.use_config(config)
            if declared is not None:
                self._stamp = seen
                warn_about_keys(self._keys_file, declared)
                self.admission.declare_keys(declared.keys)
                outcome.applied.append("api_keys_file")
                outcome.problems += [f"api_keys_file: {problem}" for problem in declared.problems]

        return commit

    def _read(self) -> DeclaredKeys:
        try:
            return load_keys(self._keys_file)
        except UnreadableKeysFile as e:
            raise ConfigError(f"api_keys_file: {e}") from None
