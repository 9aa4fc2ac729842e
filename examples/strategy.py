"""A strategy on candle closes: strategy.py SERIES START END SPEED [lockstep]; prints its trades."""

import json
import sys
from decimal import Decimal

import trio
from trio_websocket import open_websocket_url


def on_candle(candle: dict, closes: list, trades: list) -> None:
    """Buy when the mean of 5 closes rises above that of 20, sell when it falls below."""
    closes.append(candle["close"])
    side = "buy" if sum(closes[-5:]) * 4 > sum(closes[-20:]) else "sell"
    if len(closes) >= 20 and not (trades and side in trades[-1]):
        trades.append(f"{candle['close_time']} {side} at {candle['close']}")


async def run(url: str, request: dict) -> tuple[list, dict]:
    message, closes, trades = {"type": "none yet"}, [], []
    async with open_websocket_url(url) as socket:
        await socket.send_message(json.dumps({"type": "create_session", **request}))
        while message["type"] not in {"end", "error"}:
            message = json.loads(await socket.get_message(), parse_float=Decimal)
            if message["type"] == "tick":
                on_candle(message["data"], closes, trades)
            elif message["type"] == "barrier":  # in lockstep the market waits for this answer
                ack = {name: message[name] for name in ("session_id", "epoch", "seq")}
                await socket.send_message(json.dumps({"type": "ack", **ack}))
    return trades, message


if __name__ == "__main__":
    series, start, end, speed, *lockstep = sys.argv[1:]
    request = {"series": [series], "start_time": start, "end_time": end, "lockstep": bool(lockstep)}
    request["speed"] = speed if speed == "max" else float(speed)
    trades, last = trio.run(run, "ws://127.0.0.1:8001", request)
    print(*trades, last.get("hash", last), sep="\n")
