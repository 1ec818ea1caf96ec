"""Every service is restarted in turn while clients stream: not one request fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.load.rolling import Plan, RollingRestarts, start_site
from tests.support.proxyctl import proxyctl
from tests.support.site import Site


@pytest.fixture
def site() -> Iterator[Site]:
    site = start_site()
    try:
        proxyctl(site, "start")
        yield site
    finally:
        proxyctl(site, "stop")
        site.remove()


async def test_nobody_notices(site: Site) -> None:
    report = await RollingRestarts(Plan(), site).run()
    print(report)
    assert report.answered >= 2000
    assert report.good, report
