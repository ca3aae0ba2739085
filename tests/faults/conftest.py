"""The sites that the faults happen to; each is started once."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.rig import Site
from tests.redis_server import RedisServer


@pytest.fixture(scope="session")
def resolver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("resolver") / "resolver.so"
    source = Path(__file__).with_name("resolver.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, resolver: Path) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"), resolver)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory, resolver: Path, redis: RedisServer) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("replicas"), resolver, 3, redis.url)
    try:
        made.start()
        yield made
    finally:
        made.stop()
