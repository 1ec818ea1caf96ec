"""Starting and stopping a site's services as a user does, under their supervisor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.site import Site

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60


def proxyctl(site: Site, *arguments: str) -> str:
    """What it printed. Raises AssertionError if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.proxyctl", "--config", str(site.config_path), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
