"""Pure: the error a person at a terminal can act on.

UserError
├── (joulegate.settings.load) SettingsError: a YAML file is wrong; carries every problem with its place
└── anything a command finds wrong with what it was given
"""


class UserError(Exception):
    """Printed as `error: message` with `help: help` below it; the process exits with `status`."""

    def __init__(self, message: str, help: str = "", status: int = 2) -> None:  # noqa: A002
        super().__init__(message)
        self.message = message
        self.help = help
        self.status = status
