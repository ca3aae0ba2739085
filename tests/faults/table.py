"""Runs every fault and writes what it did into docs/reliability.md: `python tests/faults/table.py`."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.faults.cases import CASES  # noqa: E402
from tests.faults.record import FOLDER, RECORDED, Row, rows  # noqa: E402
from tests.faults.shared_cases import SHARED_CASES  # noqa: E402

PAGE = ROOT / "docs/reliability.md"
BEGIN = "<!-- made by `python tests/faults/table.py`: run it, do not edit -->\n"
END = "<!-- end -->"


def table(found: list[Row]) -> str:
    lines = ["| fault | the client | the clocks | normal after |", "|---|---|---|---|"]
    for row in found:
        lines.append(f"| {row.fault} | {row.client} | {row.clocks} | {row.normal_s:.1f} s |")
    return "\n".join(lines) + "\n"


def page(text: str, found: list[Row]) -> str:
    """The page with the table in its place."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(found)}\n{END}{after}"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, FOLDER: folder}
        command = [sys.executable, "-m", "pytest", "-q", "tests/faults/test_faults.py", "-k", "not page"]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        found = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    order = [case.fault for case in (*CASES, *SHARED_CASES)]
    made = sorted((Row(**row) for row in found), key=lambda row: order.index(row.fault))
    RECORDED.write_text(json.dumps([asdict(row) for row in made], indent=1) + "\n")
    PAGE.write_text(page(PAGE.read_text(), rows()))


if __name__ == "__main__":
    main()
