"""What an answer means: fine, to be tried again, or final, and what to say of it; does no I/O.

Texts of the service go through `Scrubber` before anybody sees them: services like to echo keys.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from tardisd.errors import RequestError
from tardisd.plugins.secret import HIDDEN, Secret

MOST_SHOWN = 300
LONGEST_WAIT_SECS = 86_400.0
_AGAIN = frozenset({408, 409, 429})
_NO_MONEY = re.compile(
    r"insufficient[\s_-]*(account[\s_-]*)?(balance|quota|credit|fund)|payment[\s_]required"
    r"|exceeded your current quota",
    re.IGNORECASE,
)
_PASSING = re.compile(
    r"rate[\s_-]?limit|too many requests|overload|server[\s_-]?error|timeout|timed out|unavailable"
    r"|internal|upstream|bad gateway",
    re.IGNORECASE,
)
_FORMAT = re.compile(r"response_format|json_schema|json_object|structured|schema", re.IGNORECASE)
_STREAM = re.compile(r"stream", re.IGNORECASE)
_OTHER_LIMIT = re.compile(r"max_completion_tokens", re.IGNORECASE)
_NO_TEMPERATURE = re.compile(
    r"temperature.*(unsupported|not\s+support|only\s+the\s+default)"
    r"|(unsupported|not\s+support).*temperature",
    re.IGNORECASE,
)
_KEYS = re.compile(r"\b(sk|cr|hs)[-_][A-Za-z0-9*_.…-]{4,}|Bearer\s+\S+", re.IGNORECASE)
_HTML = re.compile(r"<(!doctype|html|head|body|h1|center|title)\b", re.IGNORECASE)
_TAGS = re.compile(r"<(script|style).*?</\1>|<[^>]*>", re.IGNORECASE | re.DOTALL)

_FEATURES = {
    "max_tokens": _OTHER_LIMIT,
    "temperature": _NO_TEMPERATURE,
    "format": _FORMAT,
    "stream": _STREAM,
}


class Again(Exception):
    """Raised for what may pass. `wait_secs` is what the service asks for, if it does.

    `spent`: the service may have worked, and sends a bill for it.
    """

    def __init__(self, reason: str, wait_secs: float | None = None, *, spent: bool = True) -> None:
        super().__init__(reason)
        self.wait_secs = wait_secs
        self.spent = spent


class Unsupported(Exception):
    """Raised when the service does not know a feature that was asked for.

    That is `format`, `stream`, `max_tokens` (under this name) or `temperature`.
    """

    def __init__(self, feature: str, reason: str) -> None:
        super().__init__(reason)
        self.feature = feature


class Refused(RequestError):
    """Raised when the service will not answer, whatever is asked: key, account, address."""

    def __init__(self, message: str) -> None:
        super().__init__("analyzer_unavailable", message)


class Failed(RequestError):
    """Raised when this question got no answer that can be used. `spent` as of Again."""

    def __init__(self, message: str, *, spent: bool = True) -> None:
        super().__init__("analyzer_failed", message)
        self.spent = spent


class Scrubber:
    """Makes a text of the service fit to be shown: one line, short, without the key."""

    def __init__(self, key: Secret | None) -> None:
        self._forms: list[str] = []
        if key is not None:
            text = key.reveal()
            forms = {text, json.dumps(text)[1:-1]}
            self._forms = sorted((one for one in forms if len(one) >= 4), key=len, reverse=True)

    def hide(self, text: str) -> str:
        """Return the text with the key hidden, however long it is."""
        for form in self._forms:
            text = text.replace(form, HIDDEN)
        return text

    def line(self, text: str) -> str:
        """Return the text as one short line."""
        text = _KEYS.sub(HIDDEN, self.hide(text))
        text = "".join(mark if mark.isprintable() else " " for mark in text)
        text = " ".join(text.split())
        return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "…"


def wait_of(error: Mapping[str, Any], header: float | None) -> float | None:
    """Return for how long the service wants to be left alone, by header or body."""
    found = [] if header is None else [header]
    for place in (error, error.get("error")):
        value = place.get("retry_after") if isinstance(place, dict) else None
        try:
            secs = math.nan if value is None or isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            continue
        if math.isfinite(secs):
            found.append(secs)
    return min(max(0.0, *found), LONGEST_WAIT_SECS) if found else None


def told_by(body: object) -> str:
    """Return what a service says is wrong, whatever shape it says it in."""
    if isinstance(body, str):
        if _HTML.search(body[:2000]):
            shown = " ".join(_TAGS.sub(" ", body[:20_000]).split())
            return f"a page of HTML: {shown}" if shown else "a page of HTML"
        return body
    if not isinstance(body, dict):
        return ""
    error = body.get("error")
    if isinstance(error, dict):
        parts = [error.get("code"), error.get("type"), error.get("message")]
    else:
        parts = [error, body.get("code"), body.get("type"), body.get("message"), body.get("detail")]
    words: list[str] = []
    for part in parts:
        if isinstance(part, str | int) and not isinstance(part, bool) and str(part) not in words:
            words.append(str(part))
    return ": ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def judge_status(
    status: int, phrase: str, told: str, where: str, wait: float | None, location: str
) -> None:
    """Raise for an answer that is none: Again, Unsupported, Refused or Failed."""
    said = f"{where}: HTTP {status} {phrase}".rstrip()
    full = f"{said}: {told}" if told else said
    if 300 <= status < 400:
        raise Refused(
            f"{said}: it leads to {location or 'nowhere'}, but redirects are not followed;"
            " set base_url to where the service is"
        )
    if status == HTTPStatus.PAYMENT_REQUIRED or (status >= 400 and _NO_MONEY.search(told)):
        raise Refused(f"{full}; the account has no balance left, see to it at the service")
    if status in _AGAIN or status >= 500:
        raise Again(full, wait, spent=status >= 500)
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        raise Refused(f"{full}; check api_key")
    if status == HTTPStatus.NOT_FOUND:
        raise Refused(f"{full}; check base_url and model")
    if status in {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}:
        for feature, words in _FEATURES.items():
            if words.search(told):
                raise Unsupported(feature, full)
    raise Failed(full, spent=False)


def judge_error(error: Mapping[str, Any] | str, told: str, where: str) -> None:
    """Raise for an error that came with a status of success, maybe after half of an answer."""
    body = error if isinstance(error, dict) else {"code": error}
    full = f"{where}: {told or 'an error without a text'}"
    if _NO_MONEY.search(told):
        raise Refused(f"{full}; the account has no balance left, see to it at the service")
    status = str(body.get("status", body.get("code")))
    if len(status) == 3 and status.isascii() and status.isdigit():
        judge_status(int(status), "within the answer", told, where, wait_of(body, None), "")
    if _PASSING.search(told):
        raise Again(full, wait_of(body, None))
    if _FORMAT.search(told):
        raise Unsupported("format", full)
    raise Failed(full)
