"""What benches of sessions share: a filled store, many counting clients, tables; runs nothing."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import harness
import replay
import trio

import tardisd_sqlite
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.plugins.base import Context
from tardisd.plugins.exchange import Page
from tardisd.plugins.storage import Storage

Row = tuple[str, str, str]


async def _fill(storage: Storage[Any], series: Sequence[Series], make: Callable[[Series], Batch],
                span: Span) -> None:  # fmt: skip
    async with storage.run():
        for one in series:
            batch, cursor = make(one), span.start
            for first in range(0, len(batch), replay.PAGE_ROWS):
                part = batch[first : first + replay.PAGE_ROWS]
                last = first + replay.PAGE_ROWS >= len(batch)
                end = span.end if last else part.extent().end
                part = batch.within(Span(cursor, end))
                await storage.append(one, Page(part, Span(cursor, end), source="bench"))
                cursor = end


def store(name: str, series: Sequence[Series], make: Callable[[Series], Batch], span: Span) -> Path:
    """Return a folder with a store that holds the series over `span`; made once per version."""
    sources = sorted(Path(tardisd_sqlite.__file__).parent.glob("*.py"))
    text = b"".join(path.read_bytes() for path in sources) + repr((name, series, span)).encode()
    folder = (
        Path(tempfile.gettempdir())
        / f"tardisd-bench-{name}-{hashlib.sha256(text).hexdigest()[:12]}"
    )
    if not (folder / "done").exists():
        print(f"storing {name} in {folder} (once) …", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("tardisd.sqlite*"):
            left.unlink()
        (plugin,) = tardisd_sqlite.tardisd_storages()
        storage = plugin(plugin.Options(), Context("main", folder, replay.NoSessions()))
        trio.run(partial(_fill, storage, series, make, span))
        (folder / "done").touch()
    return folder


def request(name: str, series: Sequence[Series], span: Span, **options: Any) -> dict[str, Any]:
    """Return a request to create a session."""
    return {
        "type": "create_session",
        "session_id": name,
        "series": [str(one) for one in series],
        "start_time": span.start // 1_000_000,
        "end_time": span.end // 1_000_000,
        "start_paused": True,
        **options,
    }


@contextmanager
def crowd(
    port: int, clients: int, create: Mapping[str, Any], *options: str
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Have clients join a session; yield what lets it run and returns what they counted."""
    name = create["session_id"]
    follow = {"type": "subscribe", "session_id": name, "when_full": "block"}
    begin = {"type": "resume", "session_id": name}
    texts = [json.dumps(one) for one in (create, follow, begin)]
    command = [harness.build_counter("crowd"), str(port), str(clients), *texts, *options]
    with harness.running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        if child.stdout.readline() != b"ready\n":
            raise SystemExit("bench: the clients could not join")

        def run() -> dict[str, Any]:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(b"\n")
            child.stdin.flush()
            told = child.stdout.readline()
            if not told:
                raise SystemExit("bench: the clients failed")
            result: dict[str, Any] = json.loads(told)
            return result

        yield run


def table(title: str, rows: Sequence[Row]) -> None:
    """Print what was measured beside what was asked for."""
    print(f"\n{title}\n{'':<58}{'measured':>16}  asked for")
    for label, value, wanted in rows:
        print(f"{label:<58}{value:>16}  {wanted}")
