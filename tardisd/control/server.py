"""Serve the control methods on a Unix socket; what the methods do stands in the handlers.

The clients are other processes of the same machine, some of them broken: one that sends garbage,
reads nothing, asks for too much at once or leaves in the middle harms only itself. A connection is
one reader, one writer and a task per request; replies come as they are ready.
What a client asked for ends with its connection.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import trio

from tardisd.control import protocol
from tardisd.control.call import Call
from tardisd.control.descriptors import ANCILLARY_BYTES, Descriptors, Received, received
from tardisd.control.handlers import Handler, handlers_for
from tardisd.control.listener import listening
from tardisd.control.methods import METHODS, decode_params
from tardisd.control.protocol import Lines, ProtocolError, Request
from tardisd.control.services import Services
from tardisd.errors import ConfigError, TardisError
from tardisd.log import Log
from tardisd.plugins.sparing import SparingListener
from tardisd.supervise import describe, outcome

MAX_CLIENTS = 64
MAX_PENDING = 32
PENDING_WAIT_SECS = 1.0
WRITE_TIMEOUT_SECS = 30.0
HANG_UP_CHECK_SECS = 0.1
RECEIVE_BYTES = 65_536

log = Log("tardisd.control")


async def serve_control(
    path: Path,
    services: Services,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen at `path` until cancelled; started once clients can connect.

    Raises ControlError when the path is taken, OSError when the socket cannot be made.
    """
    handlers = handlers_for(services)
    jobs = count(1)
    clients = trio.CapacityLimiter(MAX_CLIENTS)

    async def serve_client(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                clients.acquire_on_behalf_of_nowait(stream)
            except trio.WouldBlock:
                await _turn_away(stream)
                return
            try:
                await _Connection(stream, handlers, lambda: next(jobs)).run()
            finally:
                clients.release_on_behalf_of(stream)

    with listening(path) as raw:
        plain = trio.SocketListener(trio.socket.from_stdlib_socket(raw))
        listener = SparingListener(plain, first=True)  # the owner is heard amid any crowd
        log.info("control listening", path=path)
        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_listeners, serve_client, [listener])
            await nursery.start(serve)
            task_status.started()


async def _turn_away(stream: trio.SocketStream) -> None:
    message = f"{MAX_CLIENTS} control clients are connected already; try again later"
    line = protocol.encode_error(None, "too_many_clients", message)
    with trio.move_on_after(1):
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.send_all(line)


class _Connection:
    """One client: its reader, its writer and its requests in work."""

    def __init__(
        self,
        stream: trio.SocketStream,
        handlers: Mapping[str, Handler],
        next_job: Callable[[], int],
    ) -> None:
        self._stream = stream
        self._handlers = handlers
        self._next_job = next_job
        self._lines = Lines(protocol.MAX_REQUEST_BYTES)
        self._files = Descriptors()  # came with the line that has not ended yet
        self._slots = trio.Semaphore(MAX_PENDING)
        self._outgoing, self._to_write = trio.open_memory_channel[bytes](0)
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery, self._outgoing:
                    nursery.start_soon(self._write)
                    async with trio.open_nursery() as calls:
                        await self._read(calls)
                        calls.start_soon(self._leave_with_client)
                        await self._all_answered()
                        calls.cancel_scope.cancel()
        finally:
            self._files.close()

    async def _all_answered(self) -> None:
        for _ in range(MAX_PENDING):
            await self._slots.acquire()

    async def _leave_with_client(self) -> None:
        """End the connection when the client is gone, not when it only will send no more."""
        poll = select.poll()
        poll.register(self._stream.socket.fileno(), 0)
        while not any(events & select.POLLHUP for _, events in poll.poll(0)):
            await trio.sleep(HANG_UP_CHECK_SECS)
        self._scope.cancel()

    async def _read(self, nursery: trio.Nursery) -> None:
        while (news := await self._receive()).data:
            lines = self._lines.feed(news.data)
            # A sender's files arrive with the first byte of its line, and the kernel ends a receive
            # after them: they belong to the last line of what was received.
            for at, line in enumerate(lines):
                files, self._files = self._files, Descriptors()
                if at == len(lines) - 1 and not self._lines.within_line:
                    files.add(news.files)
                try:
                    await self._begin(nursery, line, files)
                except BaseException:
                    files.close()
                    news.files.close()
                    raise
            self._files.add(news.files)
            if not self._lines.within_line:
                self._files.close()

    async def _receive(self) -> Received:
        try:
            data, ancillary, flags, _ = await self._stream.socket.recvmsg(
                RECEIVE_BYTES, ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except OSError:  # reset by the client: as if it had closed
            return Received(b"", Descriptors())
        return received(data, ancillary, flags)

    async def _begin(self, nursery: trio.Nursery, line: bytes | None, files: Descriptors) -> None:
        """Start to answer one line, waiting a while for room; `files` are closed in any case."""
        try:
            if line is None:
                raise protocol.too_long()
            request = protocol.parse_request(line)
            with trio.move_on_after(PENDING_WAIT_SECS) as waited:
                await self._slots.acquire()
            if waited.cancelled_caught:
                message = f"{MAX_PENDING} requests of this connection are in work; wait for one"
                raise ProtocolError(
                    protocol.APPLICATION_ERROR, "too_many_requests", message, request.request_id
                )
        except ProtocolError as error:
            files.close()
            await self._outgoing.send(error.reply())
        else:
            nursery.start_soon(self._answer, request, files)

    async def _answer(self, request: Request, files: Descriptors) -> None:
        try:
            result, error = await outcome(partial(self._perform, request, files))
            if error is None:
                line = protocol.encode_result(request.request_id, result)
            else:
                line = _error_line(request, error)
            if not request.notification:
                await self._outgoing.send(line)
        finally:
            files.close()
            self._slots.release()

    async def _perform(self, request: Request, files: Descriptors) -> Any:
        params = decode_params(request.method, request.params)
        if files.too_many:
            message = f"more than {protocol.MAX_DESCRIPTORS} files came with one request"
            raise ProtocolError(protocol.INVALID_PARAMS, "too_large", message)
        if len(files) and not METHODS[request.method].descriptors:
            message = f"{request.method} takes no files"
            raise ProtocolError(protocol.INVALID_PARAMS, "bad_request", message)
        job = f"{request.method}-{self._next_job()}"
        call = Call(request.request_id, job, files, self._outgoing.send)
        return await self._handlers[request.method](params, call)

    async def _write(self) -> None:
        """Send lines one after another; a client that does not read one in time is cut off.

        A task of its own, because a call that is cancelled must not leave half a line behind.
        """
        async for line in self._to_write:
            with trio.move_on_after(WRITE_TIMEOUT_SECS) as limit:
                try:
                    await self._stream.send_all(line)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self._scope.cancel()
            if limit.cancelled_caught:
                log.warning("control client cut off", unread_secs=WRITE_TIMEOUT_SECS)
                self._scope.cancel()


def _error_line(request: Request, error: Exception) -> bytes:
    if isinstance(error, ProtocolError):
        return protocol.encode_error(
            request.request_id, error.slug, error.message, number=error.number
        )
    if isinstance(error, TardisError):
        data: Mapping[str, Any] = {
            name: value
            for name in ("file", "line", "column", "value", "hint")
            if (value := getattr(error, name, None)) is not None
        }
        if isinstance(error, ConfigError):
            data = {"problems": [asdict(problem) for problem in error.problems]}
        return protocol.encode_error(request.request_id, error.code, error.message, data=data)
    if isinstance(error, OSError):
        text = error.strerror or str(error)
        message = f"{error.filename}: {text}" if error.filename else text
        return protocol.encode_error(request.request_id, "os_error", message.lower())
    log.error("control method failed", method=request.method, error=describe(error))
    message = f"internal error: {type(error).__name__}; see the daemon's log"
    return protocol.encode_error(request.request_id, "internal", message)
