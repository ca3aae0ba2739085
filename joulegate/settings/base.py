"""Pure: what every settings model inherits."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A mapping in a YAML file. Unknown keys are errors; values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)
