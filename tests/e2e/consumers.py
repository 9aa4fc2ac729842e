"""What consumers of every kind have received of a session, and the content hash they make of it.

Each reads its own source to the end, with no code of the engine, and fails when a tick came twice
or out of order. That none is missing the number of ticks and the hash tell.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.append(str(Path(__file__).resolve().parents[1] / "plugins"))
sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
from redis_rig import entries
from verify_hash import record
from websocket_client import DEADLINE_SECS, Received

MINUTE_NS = 60 * 10**9

Tick = tuple[int, str, dict[str, Any]]


@dataclass(frozen=True)
class Taken:
    """What a consumer has got: how many ticks, and their hash."""

    ticks: int
    hash: str

    @classmethod
    def of(cls, ticks: Iterable[Tick]) -> Taken:
        """Hash ticks (number, data type, data), each of which must come after the one before."""
        digest, count, last = blake2b(digest_size=32), 0, 0
        for seq, channel, data in ticks:
            assert seq > last, f"{seq} came after {last}"
            digest.update(record(channel, data))
            count, last = count + 1, seq
        return cls(count, digest.hexdigest())


def exactly(text: str | bytes) -> Any:
    """Read JSON without rounding."""
    return json.loads(text, parse_float=Decimal)


def by_websocket(received: Received) -> Taken:
    """What a WebSocket client has got."""
    received.check_seq()
    return Taken.of(received.ticks)


def by_lines(path: Path) -> Taken:
    """What is in an NDJSON file."""
    with path.open() as lines:
        rows = map(exactly, lines)
        return Taken.of((row["seq"], row["channel"], row) for row in rows)


def by_parquet(*paths: Path) -> Taken:
    """What is in Parquet files, one for each series."""
    ticks = [tick for path in paths for tick in _rows(path)]
    return Taken.of(sorted(ticks, key=lambda tick: tick[0]))


def _rows(path: Path) -> Iterable[Tick]:
    table = pq.read_table(path)
    series = table.schema.metadata[b"series"].decode()
    exchange, _, rest = series.partition(":")
    symbol, _, channel = rest.rpartition("@")
    names = {"exchange": exchange, "symbol": symbol}
    times = table["datetime"].cast(pa.int64()).to_pylist()
    for ns, row in zip(times, table.drop_columns("datetime").to_pylist(), strict=True):
        data = {key: value for key, value in row.items() if value is not None} | names
        data["datetime"] = _printed(ns)
        if channel == "candle_1m":
            data["close_time"] = (ns + MINUTE_NS) // 10**6
        yield data.pop("seq"), channel, data


def _printed(ns: int) -> str:
    seconds, rest = divmod(ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"


def by_redis(client: Any, session_id: str) -> Taken:
    """What is in a Redis stream."""
    found = [row for _, row in entries(client, session_id)]
    return Taken.of((int(row["seq"]), row["channel"], exactly(row["data"])) for row in found)


def by_webhook(path: Path, session_id: str) -> Taken:
    """What a receiver of webhooks has written down, each key once as it would be handled."""
    bodies: dict[str, str] = {}
    with path.open() as lines:
        for line in lines:
            request = json.loads(line)
            first = bodies.setdefault(request["key"], request["body"])
            assert first == request["body"], f"{request['key']} came with another body"
    contents = {key: exactly(body) for key, body in bodies.items()}
    for key, one in contents.items():
        assert key == f"{one['session_id']}:{one['epoch']}:{one['first_seq']}"
    mine = [one for one in contents.values() if one["session_id"] == session_id]
    return Taken.of(
        (one["first_seq"] + at, tick["channel"], tick)
        for one in mine
        for at, tick in enumerate(one["ticks"])
    )


def by_http(url: str, session_id: str) -> Taken:
    """What an HTTP stream of a session brings, from its first tick on."""
    where = f"{url}/api/replay/{session_id}/stream?epoch=1&from_seq=0&when_full=block"
    with urllib.request.urlopen(where, timeout=DEADLINE_SECS) as answer:
        lines = [exactly(line) for line in answer]
    assert (lines[0]["type"], lines[-1]["type"]) == ("subscribed", "end")
    return Taken.of((one["seq"], one["channel"], one) for one in lines if "channel" in one)
