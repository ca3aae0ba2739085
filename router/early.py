"""Shell: what a gateway does before anything else: a SIGHUP no longer ends it.

Until it has read its settings there is nothing to read again, and what is written by then will be read.
"""

import signal


def early() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
