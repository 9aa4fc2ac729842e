"""What end-to-end tests of backfills share: venues that serve beside the test, and configs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import trio
from daemon_rig import Daemon, wait_for

from tardisd.testing.venues.venue import Venue

HEAD = """
[daemon]
data_dir = "{folder}/data"
control_socket = "{folder}/control.sock"
log_format = "text"

[storages.main]
plugin = "sqlite"
"""
_OPTIONS = {"rest": "rest_url", "swap": "swap_rest_url", "archive": "archive_url"}


@contextmanager
def serving(*venues: Venue) -> Iterator[None]:
    """Serve from threads while the block lasts."""
    ends, threads = [], []
    try:
        for venue in venues:
            ready, end = threading.Event(), trio.Event()
            token: list[trio.lowlevel.TrioToken] = []

            async def serve(venue=venue, ready=ready, end=end, token=token) -> None:
                token.append(trio.lowlevel.current_trio_token())
                async with venue.serve():
                    ready.set()
                    await end.wait()

            thread = threading.Thread(target=trio.run, args=(serve,))
            thread.start()
            threads.append(thread)
            assert ready.wait(30)
            ends.append((token[0], end))
        yield
    finally:
        for token_, end in ends:
            token_.run_sync_soon(end.set)
        for thread in threads:
            thread.join(30)


def instance_of(venue: Venue, name: str | None = None, **options: object) -> str:
    """Return the table of an exchange instance that takes the venue, which serves, for its own."""
    lines = [f"[exchanges.{name or venue.exchange}]", f'plugin = "{venue.exchange}"']
    lines += [f'{_OPTIONS[role]} = "{url}"' for role, url in venue.urls.items()]
    lines += [f"{key} = {value}" for key, value in options.items()]
    return "\n".join(lines) + "\n"


def ended(daemon: Daemon, job: int) -> dict:
    """Return a job when it has ended."""

    def look() -> dict | None:
        shown = daemon.ask("backfill.show", job=job)
        return shown if shown["ended_at"] else None

    return wait_for(look, "the end of the job")
