"""Shell: `python -m control.plan_child < QUESTION > ANSWER`: one plan beside a running gateway.

It reads a `control.provision.Question` from the gateway that started it and writes the `Provision`, both as
JSON (`control.plan_wire`). It gives way to everything else on the machine, ends by itself, and takes neither
much time nor memory. Exit status 0: the answer is there; 1 and a line on stderr: it is not.
"""

import os
import resource
import sys

CPU_SECONDS = 60
MEMORY = 4 * 2**30  # bytes of address space, most of it never touched


def main() -> int:
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    from control.fleet_solver import solution  # not before the limits hold
    from control.plan_wire import encoded, question_in
    from control.provision import provision

    question = question_in(sys.stdin.buffer.read())
    try:
        answer = provision(question, solution)
    except (ValueError, MemoryError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.buffer.write(encoded(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
