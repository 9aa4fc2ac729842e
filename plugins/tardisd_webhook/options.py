"""The options of the webhook sink."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import httpx
import msgspec
from msgspec import Meta

from tardisd.plugins.base import Options
from tardisd.plugins.secret import Secret

_RESERVED = {"content-type", "content-length", "host", "idempotency-key", "x-tardisd-signature"}


class WebhookOptions(Options, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of the webhook sink."""

    url: Annotated[Secret, Meta(description="where to POST to; http:// or https://")]
    secret: Annotated[
        Secret | None, Meta(description="signs every request; none: they are not signed")
    ] = None
    headers: Annotated[
        dict[str, Secret], Meta(description="more headers, such as Authorization")
    ] = msgspec.field(default_factory=dict)
    tls_ca: Annotated[
        Path | None, Meta(description="PEM file with the issuers to trust; default: the usual ones")
    ] = None
    batch_ticks: Annotated[int, Meta(ge=1, le=100_000, description="most ticks in a request")] = 500
    batch_ms: Annotated[
        int, Meta(ge=0, le=3_600_000, description="longest wait (wall time) for a batch to fill")
    ] = 1000
    max_body_bytes: Annotated[
        int, Meta(ge=1024, description="largest body; a tick that is larger goes alone")
    ] = 1_048_576
    max_attempts: Annotated[
        int, Meta(ge=1, description="attempts before a batch goes to the dead-letter file")
    ] = 10
    backoff_secs: Annotated[
        float, Meta(gt=0, description="longest wait after the first failure; doubles with each")
    ] = 0.5
    backoff_max_secs: Annotated[
        float, Meta(gt=0, description="longest wait after any; Retry-After may ask for more")
    ] = 30.0
    timeout_secs: Annotated[
        float, Meta(gt=0, le=300, description="how long one request and its answer may take")
    ] = 20.0
    breaker_failures: Annotated[
        int, Meta(ge=1, description="failures in a row after which requests pause")
    ] = 5
    breaker_secs: Annotated[
        float, Meta(gt=0, description="for so long; then one request tries again")
    ] = 15.0
    patience_secs: Annotated[
        float, Meta(ge=0, le=45, description="how long sessions wait for an address that fails")
    ] = 30.0
    dead_letter: Annotated[
        Path | None,
        Meta(description="file for what was not delivered; default: NAME-dead.ndjson in data_dir"),
    ] = None
    dead_letter_bytes: Annotated[
        int,
        Meta(ge=1024, description="its largest size; then it becomes FILE.1 and a new one begins"),
    ] = 268_435_456

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.url.reveal())
        except httpx.InvalidURL:
            raise ValueError("url is not an address; write https://HOST/PATH") from None
        if url.scheme not in {"http", "https"} or not url.host:
            raise ValueError("url must begin with http:// or https:// and name a host")
        for name, value in self.headers.items():
            if name.lower() in _RESERVED:
                raise ValueError(f"headers has {name!r}, which the sink itself sets; leave it out")
            try:
                name.encode("ascii")
                clean = value.reveal().encode("ascii").isascii()
            except UnicodeEncodeError:
                clean = False
            if not clean or not name or any(mark in name + value.reveal() for mark in "\r\n\0"):
                raise ValueError(f"headers has {name!r}, which is no header: plain ASCII, one line")
