"""A gateway that starts again under steady traffic goes on lowering clocks: what it had proven holds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.lone import TOP, LoneSite, eventually
from tests.e2e.standing import restart_gateway

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LoneSite]:
    site = LoneSite(tmp_path, 22.0, profiled=True)
    yield site
    site.close()


def test_proofs_outlive_a_gateway_under_steady_traffic(site: LoneSite) -> None:
    with site.traffic(3.0, 100):
        eventually(lambda: 0 < (site.instance()["target_mhz"] or TOP) < TOP, 120.0)
        restart_gateway(site.side, site.http)
        eventually(lambda: site.instance()["mapping"]["state"] == "proven", 60.0)
        assert "before this gateway started" in site.instance()["mapping"]["why"]
        eventually(lambda: 0 < (site.instance()["target_mhz"] or TOP) < TOP, 120.0)
