"""Engines that somebody else runs: whether they answer, and what their clocks say."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

from vllm_proxy.cli.doctor.check import Finding, Site, fail, ok
from vllm_proxy.cli.doctor.store import skewed

_TIMEOUT_S = 3.0
#: An HTTP date has whole seconds.
_DATE_STEP_S = 1.0


def attached_engines(site: Site) -> Iterator[Finding]:
    for name, spec in site.settings.hosts().items():
        settings = site.settings.for_host(name)
        section = settings.section(spec.engine)
        if section is None or section.launch_mode != "attached":
            continue
        host, port = settings.native_address(spec.engine)
        url = section.url or f"http://{host}:{port}"
        asked_at = time.time()
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=_TIMEOUT_S) as answer:
                date = answer.headers["date"]
        except urllib.error.HTTPError as e:  # it answers, whatever
            date = e.headers["date"]
        except OSError as e:
            reason = getattr(e, "reason", e)
            yield fail(
                f"engine-{name}: nothing answers at {url}: {reason}",
                f"start that engine, or correct {spec.engine}.url (or engine_hosts.{name}.url)",
            )
            continue
        ahead_s = parsedate_to_datetime(date).timestamp() + _DATE_STEP_S / 2 - asked_at if date else 0.0
        if abs(ahead_s) - _DATE_STEP_S - (time.time() - asked_at) > site.max_skew_s:
            yield skewed(f"the engine at {url}", ahead_s)
        else:
            yield ok(f"engine-{name}: {url} answers")
