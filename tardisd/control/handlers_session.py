"""The control methods about sessions; what a session does stands in the replay engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import trio

from tardisd.control.call import Call
from tardisd.control.methods import (
    NewSession,
    NoParams,
    Preset,
    SessionId,
    SessionSeek,
    SessionSpeed,
    SessionStep,
    Watch,
    complaint,
)
from tardisd.control.services import Services
from tardisd.errors import RequestError
from tardisd.market.time import MILLISECOND
from tardisd.plugins.session_form import SessionForm, time_field
from tardisd.plugins.sessions import Block, Dismissed, Evicted, Notice, SessionRequest
from tardisd.wall import wall_ns

# A watcher looks at so many ticks a second at most; it misses the others, the session none.
WATCHED_TICKS_PER_SEC = 50_000


class SessionMethods:
    """`session.*`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def list(self, params: NoParams, call: Call) -> list[dict[str, Any]]:
        """List sessions, ended ones that are kept included."""
        return [session.status() for session in self._services.sessions.list()]

    async def show(self, params: SessionId, call: Call) -> dict[str, Any]:
        """Return one session's status."""
        return self._services.sessions.get(params.session_id).status()

    async def create(self, params: NewSession, call: Call) -> dict[str, Any]:
        """Create a session and start its clock."""
        given = {
            name: value
            for name, value in msgspec.structs.asdict(params).items()
            if value is not None and name != "sinks"
        }
        try:
            form = msgspec.convert(given, SessionForm)
        except msgspec.ValidationError as error:
            raise RequestError("bad_request", complaint(str(error))) from None
        return await self._begin(form.session_request("control", tuple(params.sinks)))

    async def start(self, params: Preset, call: Call) -> dict[str, Any]:
        """Start a session from a preset of the configuration."""
        presets = self._services.config.sessions
        if params.preset not in presets:
            known = ", ".join(presets) or "none"
            text = f"preset: there is no [sessions.{params.preset}]; configured: {known}"
            raise RequestError("bad_request", text)
        try:
            request = presets[params.preset].request(wall_ns())
        except ValueError as error:
            raise RequestError("bad_request", str(error)) from None
        return await self._begin(replace(request, session_id=self._id_for(params)))

    def _id_for(self, params: Preset) -> str | None:
        """Return the id asked for, else the preset's name when it is free."""
        taken = {session.session_id for session in self._services.sessions.list()}
        return params.session_id or (None if params.preset in taken else params.preset)

    async def _begin(self, request: SessionRequest) -> dict[str, Any]:
        session = await self._services.sessions.create(request)
        answer = _notice_json(session.session_id, session.created())
        session.begin()
        return answer

    async def pause(self, params: SessionId, call: Call) -> dict[str, Any]:
        """Stop a session's clock."""
        session = self._services.sessions.get(params.session_id)
        return _notice_json(session.session_id, session.pause())

    async def resume(self, params: SessionId, call: Call) -> dict[str, Any]:
        """Let a session's clock run on."""
        session = self._services.sessions.get(params.session_id)
        return _notice_json(session.session_id, session.resume())

    async def stop(self, params: SessionId, call: Call) -> dict[str, Any]:
        """End a session."""
        session = self._services.sessions.get(params.session_id)
        return _notice_json(session.session_id, session.stop())

    async def speed(self, params: SessionSpeed, call: Call) -> dict[str, Any]:
        """Change a session's speed."""
        session = self._services.sessions.get(params.session_id)
        return _notice_json(session.session_id, session.change_speed(params.speed))

    async def seek(self, params: SessionSeek, call: Call) -> dict[str, Any]:
        """Move a session to another time."""
        session = self._services.sessions.get(params.session_id)
        if params.to is not None and params.by is None:
            notice = session.seek(time_field("to", params.to))
        elif params.by is not None and params.to is None:
            notice = session.seek_by(params.by * MILLISECOND)
        else:
            raise RequestError("bad_request", "to: give either to (a time) or by (milliseconds)")
        return _notice_json(session.session_id, notice)

    async def step(self, params: SessionStep, call: Call) -> dict[str, Any]:
        """Let ticks of a paused session through, or go back."""
        session = self._services.sessions.get(params.session_id)
        return _notice_json(session.session_id, await session.step(params.count).wait())

    async def verify(self, params: SessionId, call: Call) -> dict[str, Any]:
        """Replay a session at max, and compare the hashes."""
        session = self._services.sessions.get(params.session_id)
        return {"session_id": session.session_id, **await session.verify()}

    async def remove(self, params: SessionId, call: Call) -> dict[str, Any]:
        """Forget an ended session."""
        self._services.sessions.remove(params.session_id)
        return {"session_id": params.session_id, "type": "removed"}

    async def watch(self, params: Watch, call: Call) -> dict[str, Any]:
        """Follow a session until it ends; the result is its `end`."""
        session = self._services.sessions.get(params.session_id)
        subscription = session.subscribe(params.when_full, ("ndjson",))
        end: dict[str, Any] = {"session_id": session.session_id, "type": "end"}
        try:
            while True:
                item = await subscription.receive()
                if isinstance(item, Notice):
                    told = _notice_json(session.session_id, item)
                    await call.notify("session.notice", told)
                    if item.type == "end":
                        end = told
                else:
                    await call.notify("session.ticks", _ticks_json(item, params.max_ticks))
                    await trio.sleep(len(item) / WATCHED_TICKS_PER_SEC)
        except trio.EndOfChannel:
            return end
        except Dismissed:
            text = f"the daemon stops; {session.session_id} goes on with the next one"
            raise RequestError("stopping", text) from None
        except Evicted:
            text = f"the watcher of {session.session_id} was too slow and was cut off"
            raise RequestError("too_slow", text) from None
        finally:
            subscription.close()


def _notice_json(session_id: str, notice: Notice) -> dict[str, Any]:
    return {"session_id": session_id, "type": notice.type, **notice.fields}


def _ticks_json(block: Block, limit: int) -> dict[str, Any]:
    skipped = max(0, len(block) - limit)
    lines = bytes(block.encode("ndjson").bytes(skipped))
    data = b"[" + lines.rstrip(b"\n").replace(b"\n", b",") + b"]"
    return {
        "session_id": block.session_id,
        "epoch": block.epoch,
        "first_seq": block.first_seq + skipped,
        "skipped": skipped,
        "data": msgspec.Raw(data),
    }
