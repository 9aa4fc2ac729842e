"""The content hash written out in plain Python, and the test vectors of `docs/hash-vectors.json`.

Run it to write the vectors anew: `python tests/hash_reference.py`. The recipe is in
docs/semantics.md; nothing here uses the engine's own code.
"""

from __future__ import annotations

import json
import struct
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).resolve().parents[1] / "docs" / "hash-vectors.json"
CANDLE_FIELDS = ["open", "high", "low", "close", "volume", "quote_volume", "trades"]
TRADE_FIELDS = ["price", "amount"]


def short_hash(text: str) -> int:
    """Return the first 8 bytes of BLAKE2b, little-endian."""
    return struct.unpack("<Q", blake2b(text.encode()).digest()[:8])[0]


def venue_id(text: str | None) -> int:
    """Return the number that a venue's id enters the hash as."""
    if text is None:
        return 0
    plain = text.isascii() and text.isdigit() and (text == "0" or text[0] != "0")
    return int(text) if plain and int(text) < 2**63 else short_hash(text)


def record(tick: dict[str, Any]) -> bytes:
    """Return the bytes of one tick: series, ts_event, ts_release, id, side and its fields."""
    data_type = tick["series"].rpartition("@")[2]
    names = CANDLE_FIELDS if data_type.startswith("candle_") else TRADE_FIELDS
    identity = tick.get("id")
    bits = (identity is not None) | (tick.get("side") == "sell") << 1
    numbers = b""
    for place, name in enumerate(names):
        text = tick.get(name)
        bits |= (text is not None) << (2 + place)
        sign, digits, exponent = Decimal(text or 0).as_tuple()
        scaled = int("".join(map(str, digits))) * 10 ** (exponent + 18)
        whole, fraction = divmod(scaled, 10**18)
        numbers += struct.pack("<qq", -whole if sign else whole, -fraction if sign else fraction)
    head = (short_hash(tick["series"]), tick["ts_event"], tick["ts_release"], venue_id(identity))
    return struct.pack("<QqqQI", *head, bits) + numbers


def content_hash(ticks: list[dict[str, Any]]) -> str:
    """Return the hash of ticks in total order, in hex."""
    digest = blake2b(digest_size=32)
    for tick in ticks:
        digest.update(record(tick))
    return digest.hexdigest()


def candle(ts_event: int, interval: int, values: str, **more: str) -> dict[str, Any]:
    """Return a candle of `values` (open high low close volume)."""
    fields = dict(zip(CANDLE_FIELDS, values.split(), strict=False))
    series = "binance:BTC/USDT@candle_1m"
    times = {"series": series, "ts_event": ts_event, "ts_release": ts_event + interval}
    return times | fields | more


def trade(series: str, ts: int, price: str, amount: str, side: str, identity: str | None) -> dict:
    """Return a trade."""
    tick = {"series": f"{series}", "ts_event": ts, "ts_release": ts}
    tick |= {} if identity is None else {"id": identity}
    return tick | {"price": price, "amount": amount, "side": side}


MINUTE = 60 * 10**9
START = 1_709_251_200 * 10**9
SPOT, SWAP = "binance:BTC/USDT@trade", "okx:BTC/USDT:USDT@trade"
CASES: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "one trade": [trade(SPOT, START + 123_000_000, "65000.01", "0.00012", "buy", "3463519123")],
    "a sell, in microseconds": [
        trade(SPOT, START + 1_000, "65000.01", "1", "sell", "3463519124"),
    ],
    "ids that are text, absent, zero, and too large for an integer": [
        trade(SWAP, START, "0.1", "1", "buy", "f4c1-\u00e9 7"),
        trade(SWAP, START + 1, "0.1", "1", "buy", None),
        trade(SWAP, START + 2, "0.1", "1", "buy", "0"),
        trade(SWAP, START + 3, "0.1", "1", "buy", "007"),
        trade(SWAP, START + 4, "0.1", "1", "buy", "9223372036854775808"),
        trade(SWAP, START + 5, "0.1", "1", "buy", "9223372036854775807"),
    ],
    "a candle with all fields": [
        candle(
            START, MINUTE, "65000 65010.5 64990 65001 12.345", quote_volume="802468.0242",
            trades="571",
        )
    ],
    "a candle without quote volume and trades": [
        candle(START, MINUTE, "65000.0 65010.50 64990 65001 0")
    ],
    "wide and negative numbers": [
        trade(SPOT, START, "9223372036854775807.000000000000000001", "0.000000000000000001", "buy",
              "1"),
        trade(SPOT, START + 1, "-0.5", "1", "sell", "2"),
        trade(SPOT, START + 2, "-123456789012345678.987654321", "1", "buy", "3"),
    ],
    "a candle and the trades around its close": [
        trade(SPOT, START + MINUTE - 1, "10", "1", "buy", "1"),
        candle(START, MINUTE, "10 10 10 10 1", trades="1"),
        trade(SPOT, START + MINUTE, "11", "2", "sell", "2"),
    ],
}  # fmt: skip


def vectors() -> dict[str, Any]:
    """Return the test vectors: ticks in total order, the records made of them, and the hash."""
    return {
        "about": "Test vectors of the content hash (docs/semantics.md). Times are ns since the"
        " epoch, numbers decimal text; a field that is absent has no key.",
        "vectors": [
            {
                "name": name,
                "ticks": ticks,
                "records": [record(tick).hex() for tick in ticks],
                "hash": content_hash(ticks),
            }
            for name, ticks in CASES.items()
        ],
    }


def text() -> str:
    """Return what the file holds."""
    return json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    VECTORS.write_text(text())
