"""What the Redis tests share: servers of their own that can be killed, and a plain client."""

from __future__ import annotations

import random
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import hiredis
from services import missing

DEADLINE_SECS = 30


def command(*words):
    """Return a command as it goes over the wire; words are text, bytes or numbers."""
    raw = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"".join([b"*%d\r\n" % len(raw), *(b"$%d\r\n%s\r\n" % (len(one), one) for one in raw)])


def quiet_port():
    """Return a port that is free, and that no outgoing connection gets while a server restarts."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Client:
    """A client that asks one thing after another, and hears what is published."""

    def __init__(self, address):
        if isinstance(address, Path):
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(str(address))
        else:
            self._socket = socket.create_connection(address, DEADLINE_SECS)
        self._socket.settimeout(DEADLINE_SECS)
        self._reader = hiredis.Reader()

    def __call__(self, *words):
        self._socket.sendall(command(*words))
        return self.next()

    def next(self):
        """Return the next reply or message; raise what is an error."""
        while (reply := self._reader.gets()) is False:
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError("redis closed the connection")
            self._reader.feed(data)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def messages(self, count):
        """Return the next so many published messages."""
        return [self.next()[2] for _ in range(count)]

    def close(self):
        self._socket.close()


class PrivateRedis:
    """A redis-server on a port of its own, in a folder of its own, that keeps what it was told."""

    def __init__(self, folder, *options):
        self.program = shutil.which("redis-server") or missing("redis-server")
        self.port = quiet_port()
        self.folder = folder
        self.options = options
        self.process = None
        self.clients = []
        self.start()

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *more):
        """Start it (again), and wait until it answers."""
        # With any other appendfsync, a slow disk makes it answer before it has written.
        words = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
                 "--appendonly", "yes", "--appendfsync", "always", "--dir", str(self.folder),
                 "--unixsocket", str(self.folder / "redis.sock")]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.program, *words, *self.options, *more], stdout=log, stderr=log
            )
        give_up = time.monotonic() + DEADLINE_SECS
        while True:
            assert self.process.poll() is None, (self.folder / "log").read_text()
            if self._answers():
                return
            assert time.monotonic() < give_up
            time.sleep(0.005)

    def _answers(self):
        try:
            client = Client(("127.0.0.1", self.port))
        except OSError:
            return False
        try:
            client("PING")
        except OSError:
            return False
        except hiredis.ReplyError as error:
            return "NOAUTH" in str(error)  # else it is still reading its files
        finally:
            client.close()
        return True

    def kill(self):
        """End it as a crash does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def client(self):
        """Return a client, which is closed with the server."""
        self.clients.append(Client(("127.0.0.1", self.port)))
        return self.clients[-1]

    def close(self):
        for client in self.clients:
            client.close()
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()


@contextmanager
def private_redis(folder, *options):
    """Run a redis-server for as long as the block lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    server = PrivateRedis(folder, *options)
    try:
        yield server
    finally:
        server.close()


def entries(client, session_id):
    """Return the entries of a session's stream: (id, fields as text)."""
    found = client("XRANGE", f"replay:{session_id}:ticks", "-", "+")
    return [
        (name.decode(), {k.decode(): v.decode() for k, v in zip(row[::2], row[1::2], strict=True)})
        for name, row in found
    ]
