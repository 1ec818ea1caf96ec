"""The start command that `MODEL=` puts in the place of the configured one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StartCommand:
    """A file that the services read. An engine host reads it again whenever it is restarted, also after a crash."""

    path: Path
    text: str

    @property
    def overrides(self) -> tuple[str, ...]:
        """What makes a service read it."""
        return f"vllm.start_cmd_file={self.path}", "vllm.start_cmd=null"

    def differs(self) -> bool:
        """Whether the file is there and says something else."""
        return self.path.exists() and self.path.read_text() != self.text

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.write_text(self.text)
