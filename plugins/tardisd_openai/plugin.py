"""The analyzers `openai` and `holysheep`: questions in, kept or paid answers out."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar

import msgspec
import trio

from tardisd.errors import PluginError, RequestError
from tardisd.log import Log
from tardisd.plugins.analyzer import Analyzer, Answer, Question
from tardisd.plugins.base import Context
from tardisd.plugins.sessions import Session
from tardisd.plugins.sink import Writer

from .budget import Booked, Budget, estimated_tokens
from .comments import Comments
from .judge import Again
from .ledger import Ledger
from .options import OpenaiOptions
from .prompts import Prompt, as_line, cache_key, is_contaminated, render
from .service import Service
from .talk import Said, Talk

log = Log("tardisd.openai")


class OpenaiAnalyzer(Analyzer[OpenaiOptions]):
    """Answers questions, and comments on sessions, with a model of an OpenAI-compatible service."""

    name: ClassVar[str] = "openai"
    Options: ClassVar[type[OpenaiOptions]] = OpenaiOptions
    answers = True

    def __init__(self, options: OpenaiOptions, context: Context) -> None:
        super().__init__(options, context)
        self._service = Service(options)
        self._talk = Talk(self._service, options)
        self._ledger = Ledger(
            context.data_dir / f"{context.name}-answers.sqlite", options.cache_entries
        )
        self._budget = Budget(self._ledger, options)
        self._asking: dict[bytes, trio.Event] = {}

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Hold the file and the connections open."""
        await self._budget.call(self._ledger.open)
        try:
            async with self._service.opened():
                yield
        finally:
            with trio.CancelScope(shield=True):  # it closes a file, no more
                await self._budget.call(self._ledger.close)

    async def probe(self) -> None:
        """Return when the service answers and has the model. Raises PluginError."""
        try:
            with trio.fail_after(self.options.total_timeout_secs):
                names = await self._service.models()
        except trio.TooSlowError:
            raise PluginError(f"{self._service.where}: no answer in time") from None
        except (RequestError, Again) as error:
            raise PluginError(str(error)) from None
        if names and self.options.model not in names:
            known = ", ".join(sorted(names)[:20])
            raise PluginError(
                f"{self._service.where}: has no model {self.options.model!r}; it has: {known}"
            )

    def open(self, session: Session) -> AbstractAsyncContextManager[Writer | None]:
        """Comment on the session after every `every_candles`."""
        options = self.options
        if options.every_candles is None:
            return nullcontext()

        async def ask(question: Question) -> Answer:
            return await self._answer(question, session)

        return nullcontext(
            Comments(
                session,
                self.context.name,
                ask,
                every=options.every_candles,
                analysis_type=options.comment_type,
                secs=options.comment_secs,
                at_once=options.max_concurrent,
            )
        )

    async def ask(self, question: Question) -> Answer:
        """Answer from what is kept, or ask the service.

        Raises RequestError: `bad_request`, `analyzer_failed` or `analyzer_unavailable`.
        """
        return await self._answer(question, self._session(question.session_id))

    def _session(self, session_id: str | None) -> Session | None:
        if session_id is None:
            return None
        try:
            return self.context.sessions.get(session_id)
        except RequestError:
            return None

    async def _answer(self, question: Question, session: Session | None) -> Answer:
        prompt = render(question, self.options)
        if session is not None:
            await self._budget.meet(session)
        said, cached = await self._said(prompt, question.session_id)
        more: dict[str, Any] = {}
        if said.signal is not None:
            more["signal"] = said.signal
        if said.truncated:
            more["truncated"] = True
        if is_contaminated(prompt, self.options):
            more["contaminated"] = True
        if prompt.lookahead:
            more["lookahead"] = True
        return Answer(said.content, said.model, said.usage, cached, more)

    async def _said(self, prompt: Prompt, session_id: str | None) -> tuple[Said, bool]:
        """Return what is said to a prompt, and whether it was kept from before.

        Who asks the same while it is being asked waits for that answer.
        """
        if not self.options.cache:
            return await self._asked(prompt, session_id), False
        key = hashlib.sha256(as_line(cache_key(prompt, self.options))).digest()
        while (asking := self._asking.get(key)) is not None:
            await asking.wait()
        self._asking[key] = done = trio.Event()
        try:
            kept = _decoded(await self._budget.call(partial(self._ledger.answer, key)))
            if kept is not None:
                return kept, True
            said = await self._asked(prompt, session_id)
            await self._keep(key, said)
        finally:
            del self._asking[key]
            done.set()
        return said, False

    async def _keep(self, key: bytes, said: Said) -> None:
        """Keep an answer. It is paid for, so it counts even when it cannot be kept."""
        try:
            await self._budget.call(partial(self._ledger.keep, key, msgspec.json.encode(said)))
        except RequestError as error:
            log.warning("answer not kept", instance=self.context.name, reason=error.message)

    async def _asked(self, prompt: Prompt, session_id: str | None) -> Said:
        async def grant(messages: Sequence[Mapping[str, str]]) -> Booked:
            tokens = estimated_tokens(messages, self.options)
            return await self._budget.grant(session_id, tokens)

        with trio.move_on_after(self.options.total_timeout_secs):
            return await self._talk.answer(prompt, grant)
        raise RequestError(
            "analyzer_unavailable",
            f"{self._service.where}: no answer within total_timeout_secs"
            f" ({self.options.total_timeout_secs:g} s)",
        )


def _decoded(kept: bytes | None) -> Said | None:
    """Return what was kept; None when it is not there or cannot be read, so that it is replaced."""
    try:
        return None if kept is None else msgspec.json.decode(kept, type=Said)
    except msgspec.DecodeError:
        return None


class HolysheepAnalyzer(OpenaiAnalyzer):
    """The same under the name of the service that is asked by default."""

    name: ClassVar[str] = "holysheep"
