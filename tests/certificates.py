"""Certificates made with openssl, and the address of an agent that shows one."""

import json
import subprocess
from pathlib import Path


def certificate(folder: Path, name: str, issuer: str | None) -> None:
    """`name`.crt and .key, signed by `issuer`, or by itself."""
    made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    into = ["-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}"]
    signed = ["-CA", f"{issuer}.crt", "-CAkey", f"{issuer}.key"] if issuer else []
    # Python 3.13 asks each certificate that says it is an authority what it may sign
    usage = ["-addext", "keyUsage=critical,keyCertSign"]
    if issuer:
        usage = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run(
        ["openssl", "req", "-x509", *made, *into, *signed, *usage],
        cwd=folder,
        check=True,
        capture_output=True,
    )


def ready_address(log: str) -> str | None:
    """The address in the agent's ready line, None until there is a whole one."""
    for line in log.splitlines(keepends=True):
        if '"agent ready"' in line and line.endswith("\n"):
            return str(json.loads(line)["address"])
    return None
