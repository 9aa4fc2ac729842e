"""A receiver of webhooks as a process of its own, which may be killed at any moment.

    hook_receiver.py PORT FILE

Each request is a line of FILE before it is acknowledged. It knows nothing of what is in them.
"""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class Receiver(BaseHTTPRequestHandler):
    """Writes down, then acknowledges."""

    protocol_version = "HTTP/1.1"
    file = -1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        line = json.dumps({"key": self.headers["Idempotency-Key"], "body": body})
        os.write(self.file, line.encode() + b"\n")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main(port: int, path: Path) -> None:
    """Receive until killed. A line that an earlier one did not end was not acknowledged."""
    Receiver.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.ftruncate(Receiver.file, path.read_bytes().rfind(b"\n") + 1)
    with HTTPServer(("127.0.0.1", port), Receiver) as server:
        print("listening", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
