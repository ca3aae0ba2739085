"""Pure: units as types. Inside the product every quantity is in one of these and carries no suffix."""

from typing import NewType

Seconds = NewType("Seconds", float)
Watts = NewType("Watts", float)
Joules = NewType("Joules", float)
MegaHertz = NewType("MegaHertz", int)
Tokens = NewType("Tokens", int)
