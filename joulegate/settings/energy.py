"""Pure: what energy costs where the fleet stands; only used to report, never to decide."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from joulegate.settings.base import Fault, InputFile, Section

NotNegative = Annotated[float, Field(ge=0)]


class Energy(Section):
    """Board energy is measured; the rest is arithmetic with these constants."""

    pue: float = Field(
        default=1.0, ge=1, description="Power usage effectiveness: facility energy over IT energy."
    )
    carbon_g_per_kwh: NotNegative | None = Field(
        default=None, description="Carbon intensity of the grid, constant; null: not reported."
    )
    carbon_file: InputFile | None = Field(
        default=None, description="CSV `unix_s,g_per_kwh`, one row a change, instead of the constant."
    )
    price_per_kwh: NotNegative | None = Field(
        default=None, description="Price of energy; null: not reported."
    )
    currency: str = Field(default="EUR", min_length=1, max_length=8)

    def faults(self) -> Iterator[Fault]:
        if self.carbon_g_per_kwh is not None and self.carbon_file is not None:
            yield Fault(("carbon_file",), "carbon_g_per_kwh is given too", "keep one of the two")
