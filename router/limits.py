"""Pure: what the path of the bytes puts up with: sizes in bytes, times in seconds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """Of a client's connection (guard)."""

    header_fields: int = 200
    header_bytes: int = 64 * 1024
    pipelined: int = 16  # requests sent ahead of their answers
    idle: float = 75.0  # between requests
    head: float = 10.0  # from a request's first byte to its last header
    body: float = 30.0  # for the body, on top of what `body_rate` allows
    body_rate: float = 1024.0  # bytes per second a client must reach on average
    app_body: int = 1024 * 1024  # of a request that is not the relay's: administration's are small
    reader: float = 60.0  # an answer's buffer stays full this long: the reader is gone


@dataclass(frozen=True, slots=True)
class UpstreamLimits:
    """Of a connection to an instance (upstream)."""

    connect: float = 5.0
    keep_alive: float = 4.0  # below the 5 s after which uvicorn (vLLM) closes
    race: float = 0.5  # a reused connection that dies this soon had been closed before we wrote
    header_fields: int = 200
    header_bytes: int = 64 * 1024
    informational: int = 8  # 1xx heads before the answer
    head: float = 600.0  # from the last byte sent to the answer's head
    silence: float = 300.0  # between two reads of a body
    buffer: int = 256 * 1024  # read ahead of a client that does not take


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """Of a request (relay)."""

    body: int = 64 * 1024 * 1024
    error_body: int = 64 * 1024  # an engine's error is read whole, to be translated
