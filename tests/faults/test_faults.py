"""Every fault: nothing is lost silently, nothing doubled, counters return to zero, clocks never stay low."""

import time

import pytest

from tests.faults.cases import CASES, Case
from tests.faults.record import RECORDED, Row, keep, rows
from tests.faults.rig import Site, until
from tests.faults.shared_cases import SHARED_CASES, SharedCase, together
from tests.faults.table import PAGE, page
from tests.redis_server import RedisServer


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.fault)
def test_fault(site: Site, case: Case) -> None:
    client, clocks = case.happen(site)
    normal = site.settled()
    assert site.gateway.in_flight() == 0
    keep(Row(case.fault, client, clocks, normal))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", SHARED_CASES, ids=lambda case: case.fault)
def test_fault_of_replicas(replicas: Site, redis: RedisServer, case: SharedCase) -> None:
    until(lambda: together(replicas))
    client, clocks = case.happen(replicas, redis)
    start = time.monotonic()
    replicas.settled()
    until(lambda: together(replicas))
    assert sum(gateway.in_flight() for gateway in replicas.gateways) == 0
    keep(Row(case.fault, client, clocks, time.monotonic() - start))


def test_the_page_shows_every_fault_as_recorded_last() -> None:
    assert RECORDED.exists()
    assert [row.fault for row in rows()] == [case.fault for case in (*CASES, *SHARED_CASES)]
    text = PAGE.read_text()
    assert page(text, rows()) == text
