"""Replay a session and recompute its content hash from the messages alone, without tardisd.

    verify_hash.py SERIES[,SERIES…] START END [URL]

The recipe is in docs/semantics.md, test vectors are in docs/hash-vectors.json. Exit code 1 when the
hash differs from the one that `end` carries.
"""

import json
import struct
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import blake2b
from typing import Any

import trio
from trio_websocket import open_websocket_url

FIELDS = {
    "candle": ["open", "high", "low", "close", "volume", "quote_volume", "trades"],
    "trade": ["price", "amount"],
    "agg_trade": ["price", "amount"],
}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def short_hash(text: str) -> int:
    """Return the first 8 bytes of BLAKE2b as a little-endian number."""
    return int.from_bytes(blake2b(text.encode()).digest()[:8], "little")


def nanoseconds(text: str) -> int:
    """Return ns since the epoch for `2024-03-01T00:00:00.123456789Z`."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    seconds = (datetime.fromisoformat(whole + "+00:00") - EPOCH) // timedelta(seconds=1)
    return seconds * 10**9 + int(fraction.ljust(9, "0") or 0)


def record(channel: str, data: dict[str, Any]) -> bytes:
    """Return the bytes that one tick adds to the hash."""
    kind = "candle" if channel.startswith("candle_") else channel
    event = nanoseconds(data["datetime"])
    # A candle is released at its close; one that still forms says when it was.
    release = data.get("as_of", data["close_time"]) * 10**6 if kind == "candle" else event
    identity = data.get("id")
    number, bits = 0, 0
    if identity is not None:
        canonical = identity.isascii() and identity.isdigit() and str(int(identity)) == identity
        integer = canonical and int(identity) < 2**63
        number, bits = int(identity) if integer else short_hash(identity), 1
    if data.get("side") == "sell":
        bits |= 2
    values = []
    for place, name in enumerate(FIELDS[kind]):
        value = Decimal(0)
        if name in data:
            bits |= 4 << place
            value = Decimal(data[name])
        values += [int(value), int((value - int(value)).scaleb(18))]
    series = f"{data['exchange']}:{data['symbol']}@{channel}"
    head = struct.pack("<QqqQI", short_hash(series), event, release, number, bits)
    return head + struct.pack(f"<{len(values)}q", *values)


async def verify(series: str, start: str, end: str, url: str) -> int:
    """Replay, recompute, compare; return the exit code."""
    request = {
        "type": "create_session",
        "series": series.split(","),
        "start_time": start,
        "end_time": end,
        "speed": "max",
    }
    digest, ticks = blake2b(digest_size=32), 0
    async with open_websocket_url(url) as socket:
        await socket.send_message(json.dumps(request))
        while True:
            message = json.loads(await socket.get_message(), parse_float=Decimal)
            if message["type"] == "tick":
                digest.update(record(message["channel"], message["data"]))
                ticks += 1
            elif message["type"] in {"end", "error"}:
                break
    if message["type"] == "error":
        print(f"refused: {message['message']}", file=sys.stderr)
        return 1
    same = (ticks, digest.hexdigest()) == (message["ticks"], message["hash"])
    print(f"{ticks} ticks, {digest.hexdigest()}: {'the same' if same else 'NOT what end says'}")
    return 0 if same else 1


if __name__ == "__main__":
    if len(sys.argv) not in {4, 5}:
        sys.exit(__doc__)
    arguments = [*sys.argv[1:], "ws://127.0.0.1:8001"][:4]
    sys.exit(trio.run(lambda: verify(*arguments)))
