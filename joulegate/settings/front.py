"""Pure: what faces the clients of the gateway: addresses, keys, limits; its log; what its replicas share."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from joulegate.settings.base import Fault, InputFile, Section, one_of
from joulegate.settings.fields import Count, Label, Name, Positive, RedisUrl, repeated


class Tls(Section):
    cert_file: InputFile
    key_file: InputFile


class Listen(Section):
    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(default=8080, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    tls: Tls | None = None


class ApiKey(Section):
    """One client. `rpm`, `tpm` and `concurrency` are limits; null is no limit."""

    name: Label
    key: SecretStr | None = None
    key_file: InputFile | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="Hex digest of the key, so that the file holds no secret."
    )
    models: tuple[Name, ...] = Field(default=(), description="Models the key may use; none listed: all.")
    min_ttft_ms: float = Field(default=0.0, ge=0, description="Tightest x-slo-ttft-ms the key may ask for.")
    min_tpot_ms: float = Field(default=0.0, ge=0, description="Tightest x-slo-tpot-ms the key may ask for.")
    energy_in_usage: bool = Field(
        default=False, description="Its answers carry their joules in `usage.joulegate`."
    )
    rpm: Count | None = Field(default=None, description="Requests a minute.")
    tpm: Count | None = Field(default=None, description="Tokens a minute, input and output.")
    concurrency: Count | None = Field(default=None, description="Requests at a time.")

    def faults(self) -> Iterator[Fault]:
        given = [k for k in ("key", "key_file", "sha256") if getattr(self, k) is not None]
        if len(given) != 1:
            found = f"{' and '.join(given)} are given" if given else "none is given"
            yield Fault((given[-1],) if given else (), f"a key needs one of key, key_file, sha256; {found}")


class Auth(Section):
    keys: tuple[ApiKey, ...] = Field(default=(), description="Who may call; none listed: everybody.")
    admin_key: SecretStr | None = Field(default=None, description="Opens /admin to other machines.")
    admin_key_file: InputFile | None = None

    def faults(self) -> Iterator[Fault]:
        yield from one_of(self, "admin_key", "admin_key_file")
        yield from repeated("API key", ((("keys", i, "name"), k.name) for i, k in enumerate(self.keys)))


class Edge(Section):
    """What a client may send, and how long it may take."""

    body_mib: Positive = Field(default=64, description="Largest request body.")
    header_kib: Positive = Field(default=64, description="All request headers together.")
    header_count: Count = 200
    idle_s: Positive = Field(default=65, description="A kept connection without a request.")
    header_s: Positive = Field(
        default=10, description="From the first byte of a request to the end of its headers."
    )
    body_s: Positive = Field(default=30, description="Without a byte of a body that is announced.")
    reader_s: Positive = Field(default=60, description="A client that takes no byte of its response.")


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "text"] = "json"


class Store(Section):
    redis_url: RedisUrl | None = Field(default=None, description="Only for several replicas; null: memory.")
