"""One emulated fleet with its agent, watchdog and gateway, as an operator would start them."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.standing import Site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    found = Site(tmp_path_factory.mktemp("site"), "enforce")
    yield found
    found.close()


@pytest.fixture
def own_site(tmp_path: Path) -> Iterator[Site]:
    """For tests that break it."""
    found = Site(tmp_path, "enforce")
    yield found
    found.close()


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    """Wait until a condition holds; the wait is bounded so that a failure is one."""

    def wait(condition: Callable[[], object]) -> None:
        end = time.monotonic() + 60.0
        while not condition():
            assert time.monotonic() < end, f"never came true: {condition}"
            time.sleep(0.02)

    return wait
