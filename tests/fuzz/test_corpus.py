"""Every input that was ever kept, and as many again bred from them, keep every promise."""

import random
from collections.abc import Iterator

import pytest

from tests.fuzz.inputs import kept
from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS

BRED = 1500  # a target


def bred(inputs: list[bytes], rng: random.Random) -> Iterator[bytes]:
    """Mutations, the same on every run."""
    for _ in range(BRED):
        data = bytearray(rng.choice(inputs))
        for _ in range(rng.randint(1, 4)):
            at, size = rng.randint(0, len(data)), rng.randint(0, 8)
            other = rng.choice(inputs)
            start = rng.randint(0, len(other))
            middle = rng.choice(
                [b"", rng.randbytes(size), other[start : start + size * 4], data[at : at + size] * 2]
            )
            data[at : at + size] = middle
        yield bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_keeps_the_promise(name: str) -> None:
    inputs = [*SEEDS[name], *kept(name)]
    assert kept(name), "the corpus is part of the tests"
    for one in inputs:
        TARGETS[name](one)
    for one in bred(inputs, random.Random(1)):
        TARGETS[name](one)
