"""A strategy on candle closes: strategy.py SERIES START END SPEED [lockstep]; prints its trades."""

import json
import sys
from decimal import Decimal
from typing import Any

import trio
from trio_websocket import open_websocket_url


class Cross:
    """Buys when the mean of 5 closes rises above that of 20, sells when it falls below."""

    def __init__(self) -> None:
        self.closes: list[Decimal] = []
        self.trades: list[str] = []

    def on_candle(self, candle: dict[str, Any]) -> None:
        self.closes = [*self.closes, candle["close"]][-20:]
        buy = sum(self.closes[-5:]) * 4 > sum(self.closes)
        side = "buy" if buy else "sell"
        if len(self.closes) == 20 and not (self.trades and side in self.trades[-1]):
            self.trades.append(f"{candle['close_time']} {side} at {candle['close']}")


async def run(url: str, request: dict[str, Any], strategy: Cross) -> dict[str, Any]:
    async with open_websocket_url(url) as socket:
        await socket.send_message(json.dumps({"type": "create_session", **request}))
        while True:
            message: dict[str, Any] = json.loads(await socket.get_message(), parse_float=Decimal)
            if message["type"] == "tick":
                strategy.on_candle(message["data"])
            elif message["type"] == "barrier":  # in lockstep the market waits for this answer
                ack = {name: message[name] for name in ("session_id", "epoch", "seq")}
                await socket.send_message(json.dumps({"type": "ack", **ack}))
            elif message["type"] in {"end", "error"}:
                return message


if __name__ == "__main__":
    series, start, end, speed, *lockstep = sys.argv[1:]
    request = {"series": [series], "start_time": start, "end_time": end, "lockstep": bool(lockstep)}
    request["speed"] = speed if speed == "max" else float(speed)
    strategy = Cross()
    last = trio.run(run, "ws://127.0.0.1:8001", request, strategy)
    print(*strategy.trades, last.get("hash", last), sep="\n")
