"""Pure: what every settings model inherits, and the types its fields share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationInfo
from pydantic.config import JsonDict

Route = tuple[str | int, ...]  # keys and list indices from the top of the file to a value


@dataclass(frozen=True, slots=True)
class Fault:
    """Something a type cannot say: two settings that contradict each other, a name nobody has."""

    path: Route  # from the section that reports it
    message: str
    help: str = ""
    doubt: bool = False  # probably not meant, and no problem


class Section(BaseModel):
    """A mapping in a YAML file. Unknown keys are errors; values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def faults(self) -> Iterator[Fault]:
        """What is wrong although every type is right. Asked for once the whole file has its shape."""
        return iter(())


class File(Section):
    """The top of a YAML file. A subclass narrows `kind` to its own word."""

    version: Literal[1] = Field(description="Version of the file format.")
    kind: str | None = Field(
        default=None, description="What the file configures; only needed when its name does not say."
    )

    def misfits(self, read: Callable[[Path], bytes]) -> Iterator[Fault]:
        """What the files that it names say against it. Asked for last."""
        return iter(())


# as json_schema_extra of a field: what its section leaves out is taken from another section
PARTIAL: JsonDict = {"x-partial": True}


@dataclass(frozen=True, slots=True)
class Reading:
    """Validation context: where relative paths start, and how to look whether a file is there."""

    folder: Path
    is_file: Callable[[Path], bool]


def _resolved(path: Path, info: ValidationInfo) -> Path:
    return info.context.folder / path if isinstance(info.context, Reading) else path


def _existing(path: Path, info: ValidationInfo) -> Path:
    if isinstance(info.context, Reading) and not info.context.is_file(path):
        raise ValueError(f"no such file: {path}")
    return path


LocalPath = Annotated[Path, AfterValidator(_resolved)]  # relative to the folder of the YAML file
InputFile = Annotated[Path, AfterValidator(_resolved), AfterValidator(_existing)]


def one_of(section: Section, value: str, file: str) -> Iterator[Fault]:
    """A secret is given in place or by file, never both."""
    given: tuple[SecretStr | None, Path | None] = (getattr(section, value), getattr(section, file))
    if all(part is not None for part in given):
        yield Fault((file,), f"{value!r} is given too", f"keep one of {value!r} and {file!r}")
