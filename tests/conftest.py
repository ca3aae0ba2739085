"""What holds for every test."""

import signal

from hypothesis import settings

# A shell that starts the tests in the background lets them ignore Ctrl-C, and so would every program they
# start: those that test an interrupt would test nothing. A handler of our own is the default in children.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The verdict on a commit does not depend on luck: properties draw the same examples on every run.
# `pytest --hypothesis-profile explore` looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("repeatable")
