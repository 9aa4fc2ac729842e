"""Follow a running session over WebSocket and print its ticks: follow.py URL SESSION."""

import json
import sys

import trio
from trio_websocket import open_websocket_url


async def main(url: str, session_id: str) -> None:
    async with open_websocket_url(url) as socket:
        await socket.send_message(json.dumps({"type": "subscribe", "session_id": session_id}))
        while (message := json.loads(await socket.get_message()))["type"] not in {"end", "error"}:
            print(message.get("data", message))
        print(message)


trio.run(main, *sys.argv[1:3])
