"""Pure: every error a client of the gateway can meet, and engines' errors put into OpenAI's shape.

GatewayError
├── BadRequest                400 invalid_request_error   the client's own fault
│   ├── Unauthorized          401 authentication_error
│   ├── Forbidden             403 permission_error        the key may not use this model
│   ├── NoSuchRoute           404 invalid_request_error
│   ├── NoSuchModel           404 invalid_request_error   code model_not_found
│   ├── MethodNotAllowed      405 invalid_request_error
│   ├── ClientTimeout         408 invalid_request_error   the request did not arrive in time
│   ├── BodyTooLarge          413 invalid_request_error
│   ├── HeadTooLarge          431 invalid_request_error
│   └── UnsupportedVersion    505 invalid_request_error
├── RateLimited               429 rate_limit_error        + Retry-After
├── Shed                      503 overloaded_error        + Retry-After; 429 where the pool says so
├── PoolDown                  503 service_unavailable     + Retry-After; no instance can serve
├── GatewayBusy               503 service_unavailable     out of file descriptors; no instance's fault
└── UpstreamError             502 upstream_error
    ├── UpstreamDown          502                         refused, reset, or cut off
    ├── UpstreamGarbled       502                         broke HTTP's framing
    ├── KeyRefused            502                         the key that we send it is wrong, not the client's
    ├── ModelGone             503                         + Retry-After; it does not know its model any more
    ├── Resteered             503                         + Retry-After; taken back, and no other had a place
    ├── Squashed              429 rate_limit_error        + Retry-After; past its deadline, and others wait
    └── UpstreamSilent        504                         no answer, or none to its end, in time
"""

from typing import ClassVar

import orjson


class GatewayError(Exception):
    """Carries what the client is told. `retry_after` is in seconds."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        as_status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.answer_status = as_status or self.status

    def body(self) -> bytes:
        """OpenAI's error object, as JSON."""
        return error_body(self.message, self.type, self.param, self.code)

    def headers(self) -> list[tuple[bytes, bytes]]:
        if self.retry_after is None:
            return []
        return [(b"retry-after", b"%d" % max(1, -int(-self.retry_after // 1)))]


class BadRequest(GatewayError):
    status = 400
    type = "invalid_request_error"


class Unauthorized(BadRequest):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(BadRequest):
    status = 403
    type = "permission_error"
    code = "model_not_allowed"


class NoSuchRoute(BadRequest):
    status = 404
    code = "unknown_url"


class NoSuchModel(BadRequest):
    status = 404
    code = "model_not_found"


class MethodNotAllowed(BadRequest):
    status = 405


class ClientTimeout(BadRequest):
    status = 408
    code = "request_timeout"


class BodyTooLarge(BadRequest):
    status = 413
    code = "body_too_large"


class HeadTooLarge(BadRequest):
    status = 431
    code = "head_too_large"


class UnsupportedVersion(BadRequest):
    status = 505


class RateLimited(GatewayError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class Shed(GatewayError):
    status = 503
    type = "overloaded_error"
    code = "overloaded"


class PoolDown(GatewayError):
    status = 503
    type = "service_unavailable"
    code = "no_instance"


class GatewayBusy(GatewayError):
    status = 503
    type = "service_unavailable"
    code = "gateway_busy"


class UpstreamError(GatewayError):
    """`unsent`: not one byte of the request reached the instance, so it may go anywhere."""

    status = 502
    type = "upstream_error"
    code = "instance_failed"

    def __init__(self, message: str, *, unsent: bool = False) -> None:
        super().__init__(message)
        self.unsent = unsent


class UpstreamDown(UpstreamError):
    code = "instance_down"


class UpstreamGarbled(UpstreamError):
    code = "instance_garbled"


class KeyRefused(UpstreamError):
    code = "instance_key_refused"


class Passing(UpstreamError):
    """It may be over when the client comes again."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ModelGone(Passing):
    status = 503
    type = "service_unavailable"
    code = "instance_without_model"


class TakenBack(Passing):
    """By us, from an instance that had not begun to answer."""


class Resteered(TakenBack):
    """To be asked of another; the client is told only if none has a place."""

    status = 503
    type = "service_unavailable"
    code = "instance_slow"


class Squashed(TakenBack):
    """For good."""

    status = 429
    type = "rate_limit_error"
    code = "deadline_passed"


class UpstreamSilent(UpstreamError):
    status = 504
    code = "instance_silent"


def error_body(message: str, kind: str, param: str | None = None, code: str | int | None = None) -> bytes:
    text = message.encode(errors="replace").decode()  # it may name what a client sent: no text at all
    return orjson.dumps({"error": {"message": text, "type": kind, "param": param, "code": code}})


TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable",
}


def type_of(status: int) -> str:
    """OpenAI's `type` for a status an engine gave no type for."""
    return TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")


def translate(status: int, body: bytes) -> bytes | None:
    """An engine's error body as OpenAI's error object; None: it is one already, and stays as it is.

    Known shapes: TGI's flat `{"error": str, "error_type": str}`, vLLM's `{"error": "Unauthorized"}`,
    FastAPI's `{"detail": ...}`, TGI's mid-stream `{"error": {"message", "http_status_code"}}`, text, nothing.
    """
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        text = body.decode("utf-8", "replace").strip()
        return error_body(
            text[:2000] or f"the engine answered {status} with no body", type_of(status), None, status
        )
    translated = translate_object(status, found)
    return None if translated is None else orjson.dumps(translated)


def translate_object(status: int, found: object) -> dict[str, object] | None:
    """As `translate`, of what was parsed."""
    if not isinstance(found, dict):
        return _wrapped(str(found)[:2000], type_of(status), status)
    error = found.get("error")
    if isinstance(error, dict):
        return _object(status, error)
    if isinstance(error, str):
        kind = found.get("error_type")
        return _wrapped(error, kind if isinstance(kind, str) else type_of(status), status)
    if "detail" in found:
        detail = found["detail"]
        text = detail if isinstance(detail, str) else orjson.dumps(detail).decode()
        return _wrapped(text, type_of(status), status)
    if isinstance(found.get("message"), str):  # old vLLM: the object without its envelope
        kind = found.get("type")
        stated = {"type": kind if isinstance(kind, str) else type_of(status)}
        return {"error": {"param": None, "code": status, **found, **stated}}
    return _wrapped(orjson.dumps(found).decode()[:2000], type_of(status), status)


def _object(status: int, error: dict[str, object]) -> dict[str, object] | None:
    if isinstance(error.get("message"), str) and isinstance(error.get("type"), str):
        return None
    inner = error.get("http_status_code")
    code = inner if isinstance(inner, int) else status
    message = error.get("message")
    kept = {key: value for key, value in error.items() if key != "http_status_code"}
    return {
        "error": {
            "param": None,
            "code": code,
            **kept,
            "message": message if isinstance(message, str) else orjson.dumps(error).decode()[:2000],
            "type": type_of(code),
        }
    }


def _wrapped(message: str, kind: str, code: int) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
