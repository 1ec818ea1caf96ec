"""nginx in front of the edge as `scripts/start.sh --nginx` runs it: config/nginx/ with this configuration's ports,
sizes and times, in a folder of its own under run_dir. Writes it, has nginx check it, tells a running one of it.
"""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from vllm_proxy.common.settings import ConfigError, LoadedSettings, Settings

SHIPPED = Path(__file__).resolve().parent.parent / "config" / "nginx"
MAIN, PLAIN, TLS, SHARED = "nginx.conf", "vllm-proxy.conf", "vllm-proxy-tls.conf", "snippets/vllm-proxy.conf"

#: Besides the edge's own deadline, how long nginx waits, so that the edge's answer comes first.
DEADLINE_MARGIN_S = 30
HEADER_BUFFERS = 4
#: nginx lets an idle connection to the edge go after this part of the time after which the edge would.
UPSTREAM_IDLE_RATIO = 0.8
CHECK_TIMEOUT_S = 20

MISSING = (
    "nginx is not installed: install your distribution's package, or let `python3 -m scripts.external_tools nginx` "
    "unpack Debian's under .cache/tools/"
)


def folder(loaded: LoadedSettings) -> Path:
    """nginx's own: its configuration, its pid file and its temporary files."""
    return loaded.root / loaded.settings.run_dir / "nginx"


def files(loaded: LoadedSettings, edge: str) -> dict[str, str]:
    """What stands in that folder, by name. `edge` is host:port. Raises ConfigError."""
    settings = loaded.settings
    own = loaded.root / "config" / "nginx"
    source = own if (own / MAIN).exists() else SHIPPED
    site = TLS if settings.nginx.tls_certificate else PLAIN
    texts = {MAIN: MAIN, PLAIN: site, SHARED: SHARED}
    try:
        found = {name: (source / path).read_text(encoding="utf-8") for name, path in texts.items()}
    except OSError as e:
        raise ConfigError(f"{e.filename}: cannot be read: {e.strerror}") from None
    if os.geteuid() == 0:
        # Its workers could not reach a folder that is root's own.
        found[MAIN] += "\nuser root;\n"
    found[MAIN] = _with(found[MAIN], {"worker_shutdown_timeout": _deadline(settings)})
    found[PLAIN] = _site(loaded, found[PLAIN], edge)
    found[SHARED] = _with(found[SHARED], _limits(settings))
    return found


def write(loaded: LoadedSettings, edge: str) -> bool:
    """Whether that changed anything."""
    changed = False
    for name, text in files(loaded, edge).items():
        path = folder(loaded) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed = True
    (folder(loaded) / "tmp").mkdir(exist_ok=True)
    return changed


def command(loaded: LoadedSettings, nginx: Path) -> tuple[str, ...]:
    return (str(nginx), "-p", f"{folder(loaded)}/", "-c", MAIN)


def check(loaded: LoadedSettings, nginx: Path) -> None:
    """`nginx -t`. Raises ConfigError with what it says."""
    done = subprocess.run(
        [*command(loaded, nginx), "-t"], capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, cwd=loaded.root
    )
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if "[emerg]" in line or "[alert]" in line]
        raise ConfigError("\n".join(["nginx refuses its configuration:", *(f"  | {line}" for line in said)]))


def reload(pid: int) -> None:
    """New requests get the new configuration; running ones end under the old one."""
    os.kill(pid, signal.SIGHUP)


def _site(loaded: LoadedSettings, text: str, edge: str) -> str:
    nginx = loaded.settings.nginx
    idle_s = math.ceil(loaded.settings.edge.keep_alive_timeout_s * UPSTREAM_IDLE_RATIO)
    host = f"[{nginx.host}]" if ":" in nginx.host else nginx.host
    listen = f"{host}:{nginx.port}"
    values = {"server": edge, "listen": listen, "keepalive_timeout": f"{idle_s}s"}
    if nginx.tls_certificate and nginx.tls_key:
        values["listen"] = f"{listen} ssl http2"
        values["ssl_certificate"] = f'"{loaded.root / nginx.tls_certificate}"'
        values["ssl_certificate_key"] = f'"{loaded.root / nginx.tls_key}"'
    return _with(text, values)


def _limits(settings: Settings) -> dict[str, str]:
    edge = settings.edge
    return {
        "client_max_body_size": _size(edge.max_body_bytes),
        "large_client_header_buffers": f"{HEADER_BUFFERS} {_size(math.ceil(edge.max_header_bytes / HEADER_BUFFERS))}",
        "client_header_timeout": _seconds(edge.body_timeout_s),
        "client_body_timeout": _seconds(edge.body_timeout_s),
        "proxy_send_timeout": _seconds(edge.body_timeout_s),
        "send_timeout": _seconds(edge.client_stall_timeout_s),
        "keepalive_timeout": _seconds(edge.keep_alive_timeout_s),
        "proxy_read_timeout": _deadline(settings),
    }


def _with(text: str, values: Mapping[str, str]) -> str:
    """A configuration with these directives' values instead of its own. One that was taken out stays out."""
    for directive, value in values.items():
        pattern = rf"(?m)^(\s*{directive})\s+[^;{{]+;"
        text = "".join(_replaced(pattern, value, line) for line in text.splitlines(keepends=True))
    return text


def _replaced(pattern: str, value: str, line: str) -> str:
    return re.sub(pattern, lambda match: f"{match[1]} {value};", line)


def _deadline(settings: Settings) -> str:
    return _seconds(settings.edge.request_timeout_s + DEADLINE_MARGIN_S)


def _seconds(value: float) -> str:
    return f"{math.ceil(value)}s"


def _size(value: int) -> str:
    for unit, letter in ((1024 * 1024, "m"), (1024, "k")):
        if value % unit == 0:
            return f"{value // unit}{letter}"
    return str(value)
