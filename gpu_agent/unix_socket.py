"""Shell: a Unix socket to listen on, in the place of one that nobody listens on any more."""

import os
import socket
from pathlib import Path

from joulegate.errors import UserError

MAX_PACKET = 16 * 1024  # bytes, between agent and watchdog


def bound(path: Path, kind: socket.SocketKind, who: str, setting: str) -> socket.socket:
    """Its file is its owner's alone. Raises UserError when `who` else listens there, OSError.

    The claim on state_dir keeps a second agent away only where both may write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_socket():
        with socket.socket(socket.AF_UNIX, kind) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise UserError(f"another {who} listens on {path}", f"stop it, or set '{setting}'")
    fresh = socket.socket(socket.AF_UNIX, kind)
    mask = os.umask(0o177)
    try:
        fresh.bind(str(path))
    except OSError:
        fresh.close()
        raise
    finally:
        os.umask(mask)
    return fresh
