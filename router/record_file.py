"""Shell: the file that a recording goes to, of bounded size."""

import logging
import os
from pathlib import Path

from joulegate.errors import UserError

MAX_BYTES = 256 * 2**20  # about a million requests of a hundred output events
log = logging.getLogger(__name__)


class RecordFile:
    """Takes lines until it is full or cannot be written: then recording ends, and nothing else."""

    def __init__(self, path: Path, most: int = MAX_BYTES) -> None:
        """Replaces what is at `path`, readable by its owner alone. Raises UserError where it cannot."""
        self._path = path
        self._left = most
        try:
            self._file = os.fdopen(
                os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb"
            )
        except OSError as error:
            raise UserError(f"cannot record to {path}: {error.strerror}", "control.record_file") from error

    def write(self, line: bytes) -> None:
        if self._file.closed:
            return
        self._left -= len(line)
        if self._left < 0:
            self.close()
            log.warning("the recording is full", extra={"file": str(self._path)})
            return
        try:
            self._file.write(line)
        except OSError as error:
            self._end(error)

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self._end(error)

    def _end(self, error: OSError) -> None:
        log.error("recording ends", extra={"file": str(self._path), "problem": str(error)})
