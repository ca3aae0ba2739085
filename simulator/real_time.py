"""Shell: run before everything else on the machine, where that is allowed."""

import os
from contextlib import suppress


def go_first() -> None:
    """Give this process the lowest real-time priority.

    A GPU, or a client far away, does not wait for what else this host does: an emulator or a load generator
    that does measures the host. Both record their own lateness, so without the right (CAP_SYS_NICE) the run
    says by itself whether normal priority was good enough. Children do not inherit it.
    """
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
