"""A thread that runs beside a test and has ended when the block has."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def beside(run: Callable[[threading.Event], object]) -> Iterator[None]:
    """`run` in a thread of its own, until the event that it is given is set."""
    ends = threading.Event()
    thread = threading.Thread(target=run, args=(ends,))
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()
