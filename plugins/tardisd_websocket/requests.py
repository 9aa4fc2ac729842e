"""Answers the requests of one connection through the sessions of the daemon; reads no socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
import trio
from msgspec import UNSET

from tardisd.errors import RequestError, TardisError
from tardisd.plugins.host import Host
from tardisd.plugins.requests import Delivery, Quota, runs
from tardisd.plugins.sessions import Notice, Resume, Session, Sessions, Subscription, WhenFull
from tardisd.wall import wall_ms
from tardisd_websocket import messages
from tardisd_websocket.decoding import error_message
from tardisd_websocket.follower import Follower, notice_frame
from tardisd_websocket.stream import FrameStream, text_frame

MAX_QUESTIONS = 8


class Requests:
    """What one client may do. `follow` starts the task of a follower, `start` any other one."""

    def __init__(
        self,
        client_id: str,
        sessions: Sessions,
        host: Host,
        quota: Quota,
        frames: FrameStream,
        send: Callable[[bytes], Awaitable[None]],
        follow: Callable[[Follower], None],
        start: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        self.followers: dict[str, Follower] = {}
        self._client_id = client_id
        self._ephemeral: list[Session] = []
        self._sessions = sessions
        self._host = host
        self._asked = 0
        self._quota = quota
        self._frames = frames
        self._send = send
        self._follow = follow
        self._start = start

    async def answer(self, request: messages.AnyRequest) -> None:
        """Do what is asked and reply. Raises TardisError for what cannot be done."""
        match request:
            case messages.CreateSession():
                await self._create(request)
            case messages.Subscribe():
                await self._subscribe(request)
            case messages.Unsubscribe():
                await self._unsubscribe(request)
            case messages.Pause():
                await self._steer(request, request.session_id, lambda s: s.pause)
            case messages.Resumption():
                await self._steer(request, request.session_id, lambda s: s.resume)
            case messages.SpeedChange(session_id=session_id, speed=speed):
                await self._steer(request, session_id, lambda s: partial(s.change_speed, speed))
            case messages.Seek(session_id=session_id):
                to, delta = request.target()
                if to is None:
                    await self._steer(request, session_id, lambda s: partial(s.seek_by, delta))
                else:
                    await self._steer(request, session_id, lambda s: partial(s.seek, to))
            case messages.Step():
                self._step(request)
            case messages.Ack():
                self._acknowledge(request)
            case messages.Stop():
                await self._steer(request, request.session_id, lambda s: s.stop)
            case messages.Status():
                await self._status(request)
            case messages.Analyze():
                if self._asked >= MAX_QUESTIONS:
                    raise RequestError(
                        "analyzer_unavailable",
                        f"{MAX_QUESTIONS} questions of this connection wait for answers; try later",
                    )
                self._start(lambda: self._analyze(request))
                self._asked += 1
            case messages.Ping():
                await self._answer(request, {"type": "pong", "timestamp": wall_ms()})

    async def run(self, follower: Follower) -> None:
        """Run a follower's task, and strike it off when it is done."""
        try:
            await follower.run()
        except trio.ClosedResourceError:
            pass  # a close frame has gone out: nothing may follow
        finally:
            session_id = follower.session.session_id
            if self.followers.get(session_id) is follower:
                del self.followers[session_id]

    def leave(self) -> None:
        """Let go of everything: subscriptions, and the sessions that live no longer than this."""
        for follower in list(self.followers.values()):
            follower.subscription.close()
        for session in self._ephemeral:
            try:
                session.stop()
            except RequestError:
                continue  # it has ended by itself

    async def _create(self, request: messages.CreateSession) -> None:
        wanted = request.session_request("websocket")
        with self._quota.one_more():
            session = await self._sessions.create(wanted)
        if request.ephemeral:
            self._ephemeral = [*filter(runs, self._ephemeral), session]
        try:
            # First the place, then the reply, then the clock: no tick before the reply, none lost.
            follower = self._place(session, request.delivery, request.when_full)
            notice = session.created().answering(request.request_id)
            await self._send(notice_frame(session.session_id, notice))
            self._follow(follower)
        finally:
            session.begin()  # a session outlives its creator, even one that is gone by now

    async def _subscribe(self, request: messages.Subscribe) -> None:
        session = self._sessions.get(request.session_id)
        if session.session_id in self.followers:
            raise RequestError(
                "wrong_state",
                f"this connection follows {session.session_id} already; unsubscribe first,"
                " or follow it on another connection",
            )
        status = session.status()
        resume = request.resume(status["epoch"])
        follower = self._place(
            session, request.delivery, request.when_full, resume, request.lockstep
        )
        reply = {name: status[name] for name in ("session_id", "epoch", "seq", "clock")}
        if resume is not None and resume.epoch == status["epoch"]:
            reply["seq"] = resume.from_seq
        await self._answer(request, {"type": "subscribed", **reply})
        self._follow(follower)

    async def _unsubscribe(self, request: messages.Unsubscribe) -> None:
        session = self._sessions.get(request.session_id)
        follower = self.followers.get(session.session_id)
        if follower is None:
            raise RequestError(
                "wrong_state", f"this connection does not follow {session.session_id}; subscribe"
            )
        follower.leave()
        await follower.done.wait()
        await self._answer(request, {"type": "unsubscribed", "session_id": session.session_id})

    async def _steer(
        self,
        request: messages.Request,
        session_id: str,
        verb: Callable[[Session], Callable[[Any, Any], Notice]],
    ) -> None:
        session = self._sessions.get(session_id)
        if (asker := self._listening(session_id)) is not None:
            # The reply comes through the subscription, in its place among the ticks.
            verb(session)(asker, request.request_id)
            return
        notice = verb(session)(None, None).answering(request.request_id)
        await self._send(notice_frame(session.session_id, notice))

    def _listening(self, session_id: str) -> Subscription | None:
        """Return the subscription that a reply can come through, if there is one.

        One that ended with an `error` may still be sending what it has, but hears of nothing new.
        """
        follower = self.followers.get(session_id)
        if follower is None or not follower.subscription.is_open:
            return None
        return follower.subscription

    def _step(self, request: messages.Step) -> None:
        """Begin a step; a task waits for its end, so that other requests can come meanwhile."""
        session = self._sessions.get(request.session_id)
        by = self._listening(request.session_id)
        stepping = session.step(request.count, by, request.request_id)

        async def tell() -> None:
            try:
                notice = await stepping.wait()
            except TardisError as error:
                message = error_message(error, request.request_id, request.session_id)
                await self._send(text_frame(msgspec.json.encode(message)))
                return
            if not stepping.told:
                told = notice.answering(request.request_id)
                await self._send(notice_frame(session.session_id, told))

        self._start(tell)

    async def _analyze(self, request: messages.Analyze) -> None:
        """Wait for an analyzer, which may take long; other requests are answered meanwhile."""
        known = None if request.session_id is UNSET else request.session_id
        try:
            fields = await request.answer(self._host, self._sessions)
        except TardisError as error:
            message = error_message(error, request.request_id, known)
        else:
            message = {"type": "analysis", **fields}
            if request.request_id is not None:
                message["id"] = request.request_id
        self._asked -= 1
        await self._send(text_frame(msgspec.json.encode(message)))

    def _acknowledge(self, request: messages.Ack) -> None:
        session = self._sessions.get(request.session_id)
        follower = self.followers.get(request.session_id)
        if follower is None:
            raise RequestError(
                "wrong_state", f"this connection does not follow {session.session_id}; subscribe"
            )
        session.acknowledge(follower.subscription, request.epoch, request.seq)

    async def _status(self, request: messages.Status) -> None:
        if isinstance(request.session_id, str):
            state = self._sessions.get(request.session_id).status()
            await self._answer(request, {"type": "status", **state})
        else:
            states = [session.status() for session in self._sessions.list()]
            await self._answer(request, {"type": "status", "sessions": states})

    def _place(
        self,
        session: Session,
        delivery: Delivery,
        when_full: WhenFull,
        resume: Resume | None = None,
        lockstep: bool = True,
    ) -> Follower:
        name = f"client {self._client_id}"
        subscription = session.subscribe(when_full, (delivery,), name, resume, lockstep)
        follower = Follower(session, subscription, delivery, self._frames, resume)
        self.followers[session.session_id] = follower
        return follower

    async def _answer(self, request: messages.Request, message: dict[str, Any]) -> None:
        if request.request_id is not None:
            message["id"] = request.request_id
        await self._send(text_frame(msgspec.json.encode(message)))
