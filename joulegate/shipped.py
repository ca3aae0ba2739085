"""Shell: the files that come with Joulegate: engine profiles, scenarios, a trace."""

from pathlib import Path

from joulegate.errors import UserError


def shipped(name: str) -> Path:
    """Path of `configs/<name>`, in an installed package or in a checkout. Raises UserError if it is gone."""
    here = Path(__file__).resolve().parent
    for folder in (here / "configs", here.parent / "configs"):
        if (folder / name).exists():
            return folder / name
    raise UserError(f"{name} did not come with this installation", "install joulegate again")
