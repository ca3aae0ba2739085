"""What holds for every test."""

import signal

# A shell that starts the tests in the background lets them ignore Ctrl-C, and so would every program they
# start: those that test an interrupt would test nothing. A handler of our own is the default in children.
signal.signal(signal.SIGINT, signal.default_int_handler)
