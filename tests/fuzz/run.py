"""Fuzzes every target with atheris (libFuzzer), guided by coverage; `scripts/fuzz` starts this.

Every target in turn has an equal part of the time, which is the processor's: on a busy machine it takes
longer. What reached something new is kept in tests/fuzz/corpus, but not of a run with a seed: that is the
same the next time and elsewhere, as far as the machine gets. Exit status 1: an input broke a promise, hung
for half a minute or took 2 GiB; it lies in the folder that is named.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from hashlib import sha1
from pathlib import Path

from tests.fuzz.inputs import LARGEST, keep, kept
from tests.fuzz.seeds import SEEDS

LEAST = 20  # seconds of one process: it takes some to start
ONE = "from tests.fuzz.run import fuzz; import sys; fuzz(sys.argv[1], sys.argv[2:])"


def fuzz(target: str, options: list[str]) -> None:
    """In a process of its own: never returns."""
    import atheris

    with atheris.instrument_imports(include=["router", "joulegate.wire", "httptools"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup(["fuzz", *options], TARGETS[target])
    atheris.Fuzz()


def spent() -> float:
    """Processor seconds of all the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(target: str, seconds: float, seed: int, folder: Path) -> bool:
    """Whether nothing was found. `seed` 0: another one each time."""
    seeds, inputs, listed = folder / f"{target}-seeds", folder / target, folder / f"{target}.list"
    seeds.mkdir()
    inputs.mkdir()
    known = [*SEEDS[target], *kept(target)]
    files = [seeds / sha1(one).hexdigest() for one in known]
    for file, one in zip(files, known, strict=True):
        file.write_bytes(one)
    listed.write_text(",".join(map(str, files)))  # in this order: that of a folder is the file system's
    limits = [f"-max_len={LARGEST}", "-timeout=30", "-rss_limit_mb=2048", f"-seed={seed}"]
    places = [f"-seed_inputs=@{listed}", f"-artifact_prefix={folder}/", str(inputs)]
    options = [*limits, "-print_final_stats=1", *places]
    # what a string hashes to decides what is reached
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)} if seed else None
    end, sound = spent() + seconds, True
    while sound and (left := end - spent()) > 0.0:
        # libFuzzer goes by the clock on the wall: what others took of it is made up for
        once = [sys.executable, "-c", ONE, target, f"-max_total_time={max(LEAST, round(left))}", *options]
        sound = subprocess.run(once, check=False, env=environment).returncode == 0
    if not seed:
        keep(target, [*known, *(path.read_bytes() for path in inputs.iterdir())])
    return sound


def main() -> None:
    words = argparse.ArgumentParser(prog="scripts/fuzz")
    words.add_argument("--seconds", type=int, default=600)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("targets", nargs="*", choices=[*SEEDS, []])  # []: argparse checks the default too
    asked = words.parse_args()
    names = asked.targets or list(SEEDS)
    folder = Path(tempfile.mkdtemp(prefix="joulegate-fuzz-"))
    broken = [name for name in names if not run(name, asked.seconds / len(names), asked.seed, folder)]
    sys.stderr.write(f"{spent() / 60:.1f} CPU minutes\n")
    if broken:
        sys.exit(f"error: {', '.join(broken)}: see {folder}")


if __name__ == "__main__":
    main()
