"""Our own endpoints: sessions, stored series, health and figures; who may ask is settled before."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, get_args

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

import tardisd
from tardisd.errors import RequestError
from tardisd.plugins.base import Context
from tardisd.plugins.questions import QuestionForm
from tardisd.plugins.requests import MOST, USE, NewSession, Quota, decode
from tardisd.plugins.session_form import bad_field
from tardisd.plugins.sessions import Resume, Session, WhenFull
from tardisd.plugins.storage import SeriesInfo, span_json
from tardisd_http.answers import HttpError, answer, told
from tardisd_http.made import MadeSessions
from tardisd_http.openapi import document
from tardisd_http.stream import FORM, SessionStream
from tardisd_http.verbs import VERBS, Verb

MAX_SERIES = 10_000
MAX_SPANS = 1000
MAX_QUESTIONS = 32
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"

Endpoint = Callable[[Request], Awaitable[Response]]


class Api:
    """The endpoints of one sink. `all_routes` tells which there are, others' included."""

    def __init__(
        self, context: Context, max_sessions: int, all_routes: Callable[[], Sequence[BaseRoute]]
    ) -> None:
        self.made = MadeSessions(context.sessions)
        self._context = context
        self._sessions = context.sessions
        self._quota = Quota(context.sessions, max_sessions)
        self._all_routes = all_routes
        self._questions = 0

    def routes(self) -> Sequence[BaseRoute]:
        """Return the routes of these endpoints."""
        one = "/api/replay/{session_id}"
        verbs = [_post(f"{one}/{name}", self._verb(kind)) for name, kind in VERBS.items()]
        return [
            _get("/", self.root),
            _get("/health", self.health),
            _get("/health/live", self.live),
            _get("/health/ready", self.health),
            _get("/metrics", self.metrics),
            _get("/openapi.json", self.openapi),
            _get("/api/series", self.series),
            _get("/api/replay", self.list),
            _post("/api/replay/create", self.create),
            _post("/api/analyze", self.analyze),
            _get(one, self.show),
            _get(f"{one}/stream", self.stream),
            *verbs,
        ]

    async def root(self, request: Request) -> Response:
        """Say what this is."""
        content = {"server": f"tardisd/{tardisd.__version__}", "openapi": "/openapi.json"}
        return answer({"type": "tardisd", **content})

    async def live(self, request: Request) -> Response:
        """Say that it answers."""
        return answer({"type": "health", "live": True})

    async def health(self, request: Request) -> Response:
        """Say whether the daemon has started and does not stop."""
        ready = self._context.host.ready
        content = {"type": "health", "live": True, "ready": ready}
        return answer(content, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Return the daemon's figures."""
        return Response(self._context.host.metrics(), media_type=EXPOSITION)

    async def openapi(self, request: Request) -> Response:
        """Return the description of all endpoints."""
        return answer(document(self._all_routes()))

    async def list(self, request: Request) -> Response:
        """Return the state of every session, ended ones that are kept included."""
        _query(request)
        states = [session.status() for session in self._sessions.list()]
        return answer({"type": "status", "sessions": states})

    async def show(self, request: Request) -> Response:
        """Return the state of one session."""
        _query(request)
        return answer({"type": "status", **self._session(request).status()})

    async def create(self, request: Request) -> Response:
        """Create a session; its clock starts with the answer."""
        _query(request)
        wanted = decode(await _text(request), NewSession)
        asked = wanted.session_request("http")
        with self._quota.one_more():
            session = await self._sessions.create(asked)
        try:
            self.made.note(session, wanted)
            place = f"/api/replay/{session.session_id}"
            return told(session.session_id, session.created(), 201, location=place)
        finally:
            session.begin()

    def _verb(self, kind: type[Verb]) -> Endpoint:
        async def verb(request: Request) -> Response:
            _query(request)
            session = self._session(request)
            wanted = decode(await _text(request) or "{}", kind)
            notice = await _unless_gone(request, lambda: wanted.act(session))
            return told(session.session_id, notice)

        verb.__doc__ = kind.summary
        return verb

    async def stream(self, request: Request) -> Response:
        """Return the session's ticks and notices as they come, a line each."""
        query = _query(request, "epoch", "from_seq", "when_full")
        session = self._session(request)
        when_full = _when_full(query) or self.made.when_full(session)
        status = session.status()
        resume = _resume(query, status["epoch"])
        first = {name: status[name] for name in ("session_id", "epoch", "seq", "clock")}
        if resume is not None and resume.epoch == status["epoch"]:
            first["seq"] = resume.from_seq
        connection = request.scope["state"]["connection"]
        client = request.client
        name = "http client" if client is None else f"http client {client.host}:{client.port}"
        subscription = session.subscribe(when_full, (FORM,), name, resume)
        counted = self.made.streaming(session)
        return SessionStream(first, subscription, connection, counted)

    async def series(self, request: Request) -> Response:
        """Return the stored series and the spans of each that are complete."""
        query = _query(request, "storage", "exchange", "symbol", "data_type", "limit")
        storage = self._context.host.storage(query.get("storage"))
        limit = _count(query, "limit", 1000, MAX_SERIES)
        found = [info for info in await storage.list_series() if _fits(info, query)]
        listed = []
        for info in found[:limit]:
            spans = list(await storage.coverage(info.series))
            shown = [span_json(span) for span in spans[:MAX_SPANS]]
            more = {"coverage_truncated": True} if len(spans) > MAX_SPANS else {}
            listed.append({**info.shown(), "coverage": shown, **more})
        return answer({"type": "series", "series": listed, "truncated": len(found) > limit})

    async def analyze(self, request: Request) -> Response:
        """Ask an analyzer about a tick, or about the last ticks of a session."""
        _query(request)
        question = decode(await _text(request), QuestionForm)
        question.check()
        if self._questions >= MAX_QUESTIONS:
            text = f"{MAX_QUESTIONS} questions wait for answers; try later"
            raise RequestError("analyzer_unavailable", text)
        self._questions += 1
        try:
            ask = partial(question.answer, self._context.host, self._sessions)
            return answer({"type": "analysis", **await _unless_gone(request, ask)})
        finally:
            self._questions -= 1

    def _session(self, request: Request) -> Session:
        return self._sessions.get(request.path_params["session_id"])


def _get(path: str, endpoint: Endpoint) -> Route:
    return Route(path, endpoint, methods=["GET"])


def _post(path: str, endpoint: Endpoint) -> Route:
    return Route(path, endpoint, methods=["POST"])


async def _text(request: Request) -> str:
    try:
        return (await request.body()).decode()
    except UnicodeDecodeError:
        raise RequestError("bad_json", "this is not JSON: the body is not UTF-8") from None


def _query(request: Request, *known: str) -> Mapping[str, str]:
    """Return the parameters of the query; RequestError for one that is unknown or given twice."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name == "token":
            continue
        if name not in known:
            advice = f"use one of {', '.join(known)}" if known else "leave it out"
            raise bad_field(name[:100], f"is not a known parameter; {advice}")
        if name in found:
            raise bad_field(name, "is given twice; leave one out")
        found[name] = value
    return found


def _count(query: Mapping[str, str], name: str, default: int, most: int, least: int = 0) -> int:
    text = query.get(name, str(default))
    if text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most:
        return int(text)
    raise bad_field(name, f"{text[:40]!r} is not a whole number from {least} to {most}")


def _when_full(query: Mapping[str, str]) -> WhenFull | None:
    if "when_full" not in query:
        return None
    for policy in get_args(WhenFull):
        if query["when_full"] == policy:
            found: WhenFull = policy
            return found
    problem = f"{query['when_full'][:40]!r} is no policy; use {USE['when_full']}"
    raise bad_field("when_full", problem)


def _resume(query: Mapping[str, str], epoch: int) -> Resume | None:
    """Return where to go on, in the epoch that is on unless another is named."""
    if "from_seq" not in query:
        if "epoch" in query:
            raise bad_field("from_seq", "is missing; with epoch it says where to go on")
        return None
    asked = _count(query, "epoch", epoch, MOST, least=1)
    return Resume(asked, _count(query, "from_seq", 0, MOST))


def _fits(info: SeriesInfo, query: Mapping[str, str]) -> bool:
    series = info.series
    found = {
        "exchange": series.exchange,
        "symbol": str(series.symbol),
        "data_type": series.data_type.name,
    }
    return all(query.get(name, value) == value for name, value in found.items())


async def _unless_gone(request: Request, act: Callable[[], Awaitable[Any]]) -> Any:
    """Await `act`, but no longer than the client waits for it."""
    result: Any = None
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        result = await act()
        nursery.cancel_scope.cancel()
    if result is None:
        raise HttpError(400, "bad_request", "the client did not wait")
    return result
