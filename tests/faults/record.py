"""What each fault did, as a row of the table in docs/reliability.md."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = "JOULEGATE_FAULTS"  # environment: where rows are kept; not set: nowhere
RECORDED = Path(__file__).with_name("recorded.json")


@dataclass(frozen=True, slots=True)
class Row:
    """One fault."""

    fault: str
    client: str  # what it saw
    clocks: str  # what they did
    normal_s: float  # from the end of the fault until everything was as before


def keep(row: Row) -> None:
    folder = os.environ.get(FOLDER)
    if folder:
        name = "".join(c if c.isalnum() else "-" for c in row.fault)
        (Path(folder) / f"{name}.json").write_text(json.dumps(asdict(row)))


def rows() -> list[Row]:
    """As recorded last."""
    return [Row(**found) for found in json.loads(RECORDED.read_text())]
