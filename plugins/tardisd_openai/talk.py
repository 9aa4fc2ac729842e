"""A prompt becomes an answer: plain text, or a signal by whatever way the model knows to give one.

The ways, best first: a schema that the service holds the model to, JSON of any shape, plain text
with an object in it. Which one a service knows for a model is found out once. What does not pass
the checks is shown to the model once, with the reason; then the question has failed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tardisd.log import Log

from .completion import Completion
from .judge import Failed, Unsupported
from .options import OpenaiOptions
from .prompts import Prompt
from .service import Payment, Service
from .signals import SCHEMA, Unfit, read_signal

log = Log("tardisd.openai")

Grant = Callable[[Sequence[Mapping[str, str]]], Awaitable[Payment]]

_WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "json_schema",
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "signal", "strict": True, "schema": SCHEMA},
            }
        },
    ),
    ("json_object", {"response_format": {"type": "json_object"}}),
    ("plain", {}),
)


@dataclass(frozen=True, slots=True)
class Said:
    """What the model has said; `signal` when one was asked for."""

    content: str
    model: str
    usage: dict[str, Any]
    truncated: bool = False
    signal: dict[str, Any] | None = None


@dataclass
class Talk:
    """Asks a service for what a prompt wants."""

    service: Service
    options: OpenaiOptions
    _ways: dict[str, int] = field(default_factory=dict)

    async def answer(self, prompt: Prompt, grant: Grant) -> Said:
        """Return an answer that can be used. Raises RequestError."""
        if prompt.structured:
            return await self._signal(prompt, grant)
        try:
            found = await self._complete(prompt.messages, {}, grant)
        except Unsupported as error:
            raise Failed(str(error), spent=False) from None
        if not found.content.strip():
            raise Failed(f"{self.service.where}: the answer is empty ({found.finish})")
        return self._said(found, found.usage)

    async def _signal(self, prompt: Prompt, grant: Grant) -> Said:
        messages: Sequence[Mapping[str, str]] = prompt.messages
        usage: dict[str, Any] = {}
        reason = ""
        for attempt in range(2):
            found = await self._structured(messages, grant)
            usage = added(usage, found.usage)
            if found.finish == "length":
                raise Failed(
                    f"{self.service.where}: the signal was cut off at max_tokens"
                    f" ({self.options.max_tokens}); allow more"
                )
            try:
                signal = read_signal(found.content, prompt.symbols, prompt.as_of, prompt.clock)
            except Unfit as error:
                reason = self.service.scrub.line(str(error))
                log.info("ai signal not valid", service=self.service.where, reason=reason,
                         attempt=attempt + 1)  # fmt: skip
                messages = prompt.followed_by(
                    found.content[:20_000] or "(nothing)",
                    f"This is not valid: {reason}. Answer with the corrected JSON object only.",
                )
                continue
            found.content = msgspec.json.encode(signal).decode()
            return self._said(found, usage, signal)
        raise Failed(f"{self.service.where}: {self.options.model} gives no valid signal: {reason}")

    async def _structured(self, messages: Sequence[Mapping[str, str]], grant: Grant) -> Completion:
        """Ask in the best way that the service knows for this model."""
        model = self.options.model
        while True:
            way = self._ways.get(model, 0)
            name, fields = _WAYS[way]
            try:
                return await self._complete(messages, fields, grant)
            except Unsupported as error:
                if way == len(_WAYS) - 1:
                    raise Failed(str(error), spent=False) from None
                log.info("ai service lacks a format", service=self.service.where, model=model,
                         format=name, reason=str(error))  # fmt: skip
                self._ways[model] = max(way + 1, self._ways.get(model, 0))

    async def _complete(
        self, messages: Sequence[Mapping[str, str]], fields: Mapping[str, Any], grant: Grant
    ) -> Completion:
        options = self.options
        body = {
            **options.extra,
            "model": options.model,
            "messages": list(messages),
            "temperature": options.temperature,
            "max_tokens": options.max_tokens,
            **fields,
        }
        found = await self.service.complete(body, lambda: grant(messages))
        where = self.service.where
        if found.refusal:
            raise Failed(f"{where}: the model refuses to answer: {found.refusal}")
        if found.finish == "content_filter":
            raise Failed(f"{where}: the service's content filter stopped the answer")
        if found.finish in {"tool_calls", "function_call"} and not found.content:
            raise Failed(f"{where}: the model calls a tool instead of answering")
        return found

    def _said(
        self, found: Completion, usage: dict[str, Any], signal: dict[str, Any] | None = None
    ) -> Said:
        model = found.model or self.options.model
        return Said(found.content, model, usage, found.finish == "length", signal)


def added(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return what two answers have cost together."""
    found = dict(one)
    for key, value in other.items():
        mine = found.get(key)
        if isinstance(value, dict):
            found[key] = added(mine if isinstance(mine, dict) else {}, value)
        else:
            found[key] = value + mine if isinstance(mine, int | float) else value
    return found
