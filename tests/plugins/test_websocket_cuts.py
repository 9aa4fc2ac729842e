"""Sockets cut by the thousand, anywhere: every client still gets all of it, once, and the hash.

A cut is a reset or a close, in the middle of the handshake, of a request, right behind one, or of a
frame that comes. Whoever was cut off goes on where it was, by epoch and seq. Meanwhile the session
runs on as far as somebody has read, jumps back to its start, and comes to its end.
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
from contextlib import suppress
from hashlib import blake2b

import trio
from hash_reference import record
from websocket_rig import CANDLES, START, TRADES, client_frame, handshake, running

from tardisd.market.time import MINUTE
from tardisd.plugins.sessions import Notice
from tardisd.replay import position
from tardisd.replay.fanout import QueueLimits
from tardisd.replay.manager import SessionLimits
from tardisd.replay.timeline import Tuning

CUTS = 10_000 if os.environ.get("TARDISD_CHAOS") else 1200
CLIENTS = 12
HELD_AT = 2000  # the first epoch comes no farther
SESSION = {"series": [CANDLES.text, TRADES.text], "end_time": (START + 6 * MINUTE) // 10**6}
LIMITS = SessionLimits(
    tuning=Tuning(slice_ticks=64, limits=QueueLimits(blocking_ticks=128, lagging_ticks=256))
)


class Driver:
    """Lets the session run on when somebody waits for it, and has it jump back once."""

    def __init__(self, session):
        self.session, self.cuts, self.jumped = session, 0, False
        self.follower = session.subscribe("block")
        self._more = trio.Event()

    def cut(self):
        """Count a cut; half-way the session jumps."""
        self.cuts += 1
        if self.cuts >= CUTS // 2:
            self.jump()

    def jump(self):
        """Go back to the start, once."""
        if not self.jumped:
            self.jumped = True
            self.session.seek(START)
            self._more.set()

    def wants(self, client):
        """Let the session run on if the client has all that there is."""
        if (client.epoch, client.seq) == (self.session.epoch, self.session.status()["seq"]):
            if client.epoch == 1 and client.seq >= HELD_AT:
                self.jump()
            self._more.set()

    async def run(self):
        """Hold the session up, as a follower that blocks does; cancelled when all have all."""
        with suppress(trio.EndOfChannel):
            while True:
                item = await self.follower.receive()
                if not isinstance(item, Notice):
                    await self._more.wait()
                    self._more = trio.Event()


class Torn:
    """A client that is cut off again and again; knows what it has by epoch, seq and hash."""

    def __init__(self, epoch):
        self.begin(epoch)
        self.end = None

    def begin(self, epoch):
        """Have nothing of an epoch."""
        self.epoch, self.seq, self.ticks = epoch, 0, 0
        self.digest = blake2b(digest_size=32)

    def take(self, message):
        """Take a message; False when it has to come anew."""
        kind = message["type"]
        if kind in {"tick", "ticks"}:
            rows = message.get("data")
            rows = rows if kind == "ticks" else [{**rows, "channel": message["channel"]}]
            first = message["first_seq"] if kind == "ticks" else message["seq"]
            assert (message["epoch"], first) == (self.epoch, self.seq + 1), "a hole, or a double"
            for row in rows:
                self.digest.update(record(as_tick(row)))
            self.seq += len(rows)
            self.ticks += len(rows)
        elif kind == "gap":
            assert (message["epoch"], message["seq"]) == (self.epoch, self.seq + 1)
            self.seq += 1
        elif kind == "reset":
            assert message["epoch"] > self.epoch
            self.begin(message["epoch"])
            return message["seq"] == 0
        elif kind == "end":
            self.end = message
        else:
            assert kind in {"connected", "subscribed", "snapshot", "sought"}, message
        return True


def as_tick(row):
    """Return a row as the content hash wants it."""
    series = f"{row['exchange']}:{row['symbol']}@{row['channel']}"
    times = {"ts_event": row["timestamp"], "ts_release": row.get("close_time", row["timestamp"])}
    return {**row, "series": series, **{name: ms * 10**6 for name, ms in times.items()}}


class Visit:
    """One connection: as far as it comes before it is cut."""

    def __init__(self, rig, driver, dice):
        self.rig, self.driver, self.dice = rig, driver, dice
        self.stream = None

    async def pay(self, client, most):
        """Connect, go on, and read at most so many bytes (None: to the end)."""
        how = "read" if most is None else self.dice.choice(PLACES)
        request = {"type": "subscribe", "session_id": "s", "epoch": client.epoch,
                   "from_seq": client.seq, "delivery": self.dice.choice(["tick", "batch"]),
                   "when_full": self.dice.choice(["block", "disconnect"])}  # fmt: skip
        frame = client_frame(json.dumps(request).encode())
        if how == "handshake":
            self.stream = await self.rig.raw()
            await self.stream.send_all(handshake()[: self.dice.randrange(len(handshake()))])
            return
        self.stream = await self.rig.shaken()
        if how == "request":
            await self.stream.send_all(frame[: self.dice.randrange(len(frame))])
            return
        await self.stream.send_all(frame)
        if how == "read":
            await self.read(client, most)

    async def read(self, client, most):
        buffer = bytearray()
        while client.end is None and (most is None or most > 0):
            self.driver.wants(client)
            with trio.fail_after(200):
                data = await self.stream.receive_some(8192 if most is None else min(most, 8192))
            if not data:
                return  # it was too slow
            most = None if most is None else most - len(data)
            buffer += data
            for payload in complete(buffer):
                message = json.loads(payload, parse_float=str)
                if message["type"] in {"connected", "subscribed"} or client.take(message):
                    continue
                return

    def cut(self):
        """Be gone, in one of the ways in which one can be."""
        if self.stream is None:
            return
        one, how = self.stream.socket, self.dice.choice(["reset", "close", "shut down"])
        if how == "reset":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif how == "shut down":
            with suppress(OSError):  # the server was faster
                one.shutdown(socket.SHUT_WR)
        one.close()
        self.rig.streams.remove(self.stream)


PLACES = ["handshake", "request", "at once", *["read"] * 5]


def complete(buffer):
    """Yield the text frames that are complete, and take them out of the buffer."""
    while len(buffer) >= 2:
        length, at = buffer[1] & 127, 2
        if length > 125:
            at = 4 if length == 126 else 10
            length = int.from_bytes(buffer[2:at])
        if len(buffer) < at + length or at > len(buffer):
            return
        opcode, payload = buffer[0] & 15, bytes(buffer[at : at + length])
        del buffer[: at + length]
        if opcode == 1:
            yield payload


async def be_cut(rig, driver, dice, quota, truth):
    """Follow the session to its end, cut off `quota` times on the way or ways."""
    client = Torn(1)
    while quota or client.end is None:
        visit = Visit(rig, driver, dice)
        with suppress(trio.BrokenResourceError):  # the server was faster
            await visit.pay(client, dice.randrange(1, 60_000) if quota else None)
        visit.cut()
        if quota:
            quota -= 1
            driver.cut()
        if client.end is not None:
            check(client, truth)
            client = Torn(driver.session.epoch) if quota else client


def check(client, truth):
    assert (client.end["reason"], client.end["epoch"]) == ("finished", client.epoch)
    assert (client.end["ticks"], client.end["hash"]) == truth
    assert (client.ticks, client.digest.hexdigest()) == truth


async def test_sockets_cut_by_the_thousand_lose_and_double_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(position, "RECENT_TICKS", 500)  # more than that is read from the storage
    async with running(tmp_path, limits=LIMITS) as rig, rig.client() as owner:
        await owner.create(session_id="whole", **SESSION)
        whole = Torn(1)
        for message in await owner.until("end"):
            whole.take(message)
        truth = (whole.end["ticks"], whole.end["hash"])
        check(whole, truth)
        assert truth[0] > HELD_AT + 500
        await owner.create(session_id="s", start_paused=True, **SESSION)
        await owner.ask("unsubscribe", session_id="s")
        session = rig.sessions.get("s")
        driver = Driver(session)
        async with trio.open_nursery() as background:
            background.start_soon(driver.run)
            async with trio.open_nursery() as nursery:
                for number in range(CLIENTS):
                    dice = random.Random(number)
                    nursery.start_soon(be_cut, rig, driver, dice, CUTS // CLIENTS, truth)
                session.resume()
            background.cancel_scope.cancel()
        driver.follower.close()
        assert driver.cuts == CUTS // CLIENTS * CLIENTS >= 1000
        assert driver.jumped
        with trio.fail_after(200):
            while session.status()["subscribers"]:
                await trio.sleep(0.01)
