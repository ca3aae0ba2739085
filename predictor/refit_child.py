"""Shell: `python -m predictor.refit_child DATA OUT CLOCK...`: learn one engine anew beside a running gateway.

It gives way to everything else on the machine and ends by itself: least priority, a limit of CPU time and of
memory. Exit status 0: OUT is there; 1 and a line on stderr: it is not.
"""

import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

CPU_SECONDS = 300
MEMORY = 8 * 2**30  # bytes of address space, most of it never touched


def main(words: Sequence[str]) -> int:
    os.nice(19)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    from joulegate.errors import UserError  # not before the limits hold
    from predictor.latency_cli import learn

    data, out, *clocks = words
    try:
        learn([Path(data)], Path(out), [int(clock) for clock in clocks], seed=0)
    except (UserError, ValueError, MemoryError, ImportError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
