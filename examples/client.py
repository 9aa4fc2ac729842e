"""Replay a stored series and print its ticks: client.py SERIES START END [SPEED]."""

import json
import sys

import trio
from trio_websocket import open_websocket_url

series, start, end, speed = [*sys.argv[1:], "max"][:4]


async def main() -> None:
    span = {
        "start_time": start,
        "end_time": end,
        "speed": speed if speed == "max" else float(speed),
    }
    request = {"type": "create_session", "series": [series], **span}
    async with open_websocket_url("ws://127.0.0.1:8001") as socket:
        await socket.send_message(json.dumps(request))
        while (message := json.loads(await socket.get_message()))["type"] not in {"end", "error"}:
            print(message.get("data", message))
        print(message)


trio.run(main)
