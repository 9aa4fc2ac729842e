"""Answers of a chat service, whole or in pieces, as one value; sans-IO, judges nothing.

Services take liberties. What is known of them: comments, event names and blank lines among the
pieces; characters cut in two; no `[DONE]`; no choices in the piece with the usage; content that is
null or a list of parts; errors in the middle; `message` where `delta` belongs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

MOST_LINE_BYTES = 4 * 1024 * 1024
DONE = "[DONE]"
_NO_REASON = frozenset({"", "null", "none"})  # some write these as long as they have not ended


class Nonsense(Exception):
    """Raised for bytes that are no answer of such a service; says in a line what they are."""


@dataclass
class Completion:
    """What was said so far; `finish` is None as long as the service has not said that it ended."""

    content: str = ""
    refusal: str = ""
    model: str = ""
    finish: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] | str | None = None
    done: bool = False
    _parts: list[str] = field(default_factory=list)

    def take(self, message: object) -> None:
        """Take in an answer, or a piece of one. Raises Nonsense."""
        if not isinstance(message, dict):
            raise Nonsense(f"JSON that is no object ({type(message).__name__})")
        if message.get("error"):
            found = message["error"]
            # `{"error": "slug", "message": "text"}` tells more beside it than within
            self.error = found if isinstance(found, dict) else {**message, "code": found}
            return
        if isinstance(message.get("model"), str):
            self.model = message["model"]
        if isinstance(message.get("usage"), dict):
            self.usage = dict(_numbers(message["usage"]))
        choices = message.get("choices")
        if choices is None and "usage" in message:
            return
        if not isinstance(choices, list):
            raise Nonsense("a JSON object without choices")
        for choice in choices[:1]:
            self._choose(choice)

    def _choose(self, choice: object) -> None:
        if not isinstance(choice, dict):
            raise Nonsense("choices that are no objects")
        said = choice.get("delta")
        if not isinstance(said, dict):
            said = choice.get("message")
        if isinstance(said, dict):
            self._parts.append(text_of(said.get("content")))
            if isinstance(said.get("refusal"), str):
                self.refusal += said["refusal"]
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason not in _NO_REASON:
            self.finish = reason

    def whole(self) -> Completion:
        """Return itself, its text put together."""
        self.content += "".join(self._parts)
        self._parts.clear()
        return self


def text_of(content: object) -> str:
    """Return the text of a message's content: text, null, or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(
            part if isinstance(part, str) else text_of(part.get("text"))
            for part in content
            if isinstance(part, str | dict)
        )
    return ""


def _numbers(usage: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what counts; texts of the service's own have no business there."""
    for key, value in list(usage.items())[:50]:
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield key[:64], value
        elif isinstance(value, dict):
            yield key[:64], dict(_numbers(value))


def total_tokens(usage: Mapping[str, Any]) -> int | None:
    """Return the tokens that an answer has cost, or None when the service does not tell."""
    counts = [usage.get("total_tokens")]
    counts.append((usage.get("prompt_tokens") or 0) + (usage.get("completion_tokens") or 0))
    known = [int(count) for count in counts if isinstance(count, int | float) and 0 < count < 1e12]
    return max(known, default=None)


@dataclass
class Events:
    """Bytes of an event stream in, decoded pieces out."""

    _rest: bytes = b""
    _held: str = ""

    def feed(self, data: bytes) -> Iterator[object]:
        """Yield what is complete: JSON values, and DONE. Raises Nonsense."""
        self._rest += data
        *lines, self._rest = self._rest.replace(b"\r\n", b"\n").split(b"\n")
        if len(self._rest) > MOST_LINE_BYTES:
            raise Nonsense(f"a line of more than {MOST_LINE_BYTES} bytes")
        for line in lines:
            yield from self._line(line)

    def end(self) -> Iterator[object]:
        """Yield what was left: the last line may lack its end. Half a piece is dropped."""
        line, self._rest = self._rest, b""
        try:
            yield from self._line(line)
        except Nonsense:
            return

    def _line(self, line: bytes) -> Iterator[object]:
        try:
            text = line.decode().strip("\r")
        except UnicodeDecodeError:
            raise Nonsense("text that is not UTF-8") from None
        if not text:
            if self._held:
                raise Nonsense(f"a piece that is no JSON ({self._held[:80]!r})")
            return
        name, _, value = text.partition(":")
        if name != "data":  # comments, event names, ids
            return
        value = value.strip()
        if value == DONE:
            yield DONE
            return
        self._held = f"{self._held}\n{value}" if self._held else value
        if len(self._held) > MOST_LINE_BYTES:
            raise Nonsense(f"a piece of more than {MOST_LINE_BYTES} bytes")
        try:
            found = decoded(self._held)
        except Nonsense:
            return  # a value may go over several lines; a blank one ends it
        self._held = ""
        yield found


def decoded(text: str | bytes) -> object:
    """Return the JSON value in a text. Raises Nonsense."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, UnicodeEncodeError, RecursionError):
        raise Nonsense("no JSON") from None
