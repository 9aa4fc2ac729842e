"""Downloads: whole or not at all, resumed where they broke off, in constant memory."""

from __future__ import annotations

import hashlib
import os
import random
import resource
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tardisd.errors import PluginError, Retry
from tardisd.testing.venues.server import Answer, Request, serve
from tardisd.venue.budget import Budget
from tardisd.venue.client import Missing, Patience, VenueClient, usual_verdict
from tardisd.venue.download import Damaged, download, remove_download

HASTY = Patience(attempts=2, first_wait_secs=0.001)
BODY = random.Random(1).randbytes(3_000_000)
SHA = hashlib.sha256(BODY).hexdigest()


class Rig:
    """A file host: serves `file`, spoilt as told by the next of `troubles`."""

    def __init__(self, folder: Path, *troubles: dict[str, object], etag: str = '"v1"') -> None:
        self.file = folder / "on-the-host"
        self.file.write_bytes(BODY)
        self.target = folder / "kept" / "x.zip"
        self.target.parent.mkdir()
        self.requests: list[Request] = []
        self.etag = etag
        self.troubles = list(troubles)

    async def handle(self, request: Request) -> Answer:
        self.requests.append(request)
        trouble = self.troubles.pop(0) if self.troubles else {}
        made = {"body": self.file, "headers": {"ETag": self.etag} if self.etag else {}, **trouble}
        return Answer(**made)

    @asynccontextmanager
    async def client(self):
        async with serve({"host": self.handle}) as urls:
            budget = Budget("host", [], 1.0)
            client = VenueClient(
                urls["host"], budget, lambda answer, _: usual_verdict(answer), patience=HASTY
            )
            async with client.opened():
                yield client

    def left(self) -> list[str]:
        return sorted(os.listdir(self.target.parent))


async def test_a_file_comes_whole_and_checked(tmp_path):
    rig = Rig(tmp_path)
    seen = []
    async with rig.client() as client:
        found = await download(
            client, "/x.zip", rig.target, sha256=SHA.upper(), progress=lambda *at: seen.append(at)
        )
    assert (found.size, found.sha256, found.validator) == (len(BODY), SHA, '"v1"')
    assert rig.target.read_bytes() == BODY
    assert rig.left() == ["x.zip"]
    assert rig.requests[0].headers["accept-encoding"] == "identity"
    assert seen[-1] == (len(BODY), len(BODY))
    assert seen == sorted(seen)


@pytest.mark.parametrize("reset", [False, True])
async def test_what_broke_off_is_resumed(tmp_path, reset):
    cuts = [{"stop_after": 700_000, "reset": reset}] * 5  # more than the attempts that are made
    rig = Rig(tmp_path, *cuts)
    async with rig.client() as client:
        await download(client, "/x.zip", rig.target, sha256=SHA)
    assert rig.target.read_bytes() == BODY
    ranges = [request.headers.get("range") for request in rig.requests]
    assert ranges[0] is None
    assert all(text is not None for text in ranges[1:])
    assert {request.headers.get("if-range") for request in rig.requests[1:]} == {'"v1"'}


async def test_a_later_call_goes_on_where_an_earlier_one_stopped(tmp_path):
    rig = Rig(tmp_path, {"stop_after": 700_000}, *[{"status": 500, "body": b""}] * 3)
    async with rig.client() as client:
        with pytest.raises(Retry, match="HTTP 500"):
            await download(client, "/x.zip", rig.target, sha256=SHA)
    assert rig.left() == ["x.zip.part", "x.zip.part.json"]
    async with rig.client() as client:
        await download(client, "/x.zip", rig.target, sha256=SHA)
    assert rig.requests[-1].headers["range"] == f"bytes={700_000}-"
    assert rig.target.read_bytes() == BODY


async def test_a_new_version_begins_anew(tmp_path):
    rig = Rig(tmp_path, {"stop_after": 700_000}, *[{"status": 500, "body": b""}] * 3)
    async with rig.client() as client:
        with pytest.raises(Retry):
            await download(client, "/x.zip", rig.target)
    rig.etag = '"v2"'
    rig.file.write_bytes(BODY[::-1])
    async with rig.client() as client:
        found = await download(client, "/x.zip", rig.target)
    assert rig.target.read_bytes() == BODY[::-1]
    assert found.validator == '"v2"'


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
async def test_without_a_validator_nothing_is_resumed(tmp_path, etag):
    rig = Rig(tmp_path, {"stop_after": 700_000}, etag=etag)
    async with rig.client() as client:
        await download(client, "/x.zip", rig.target, sha256=SHA)
    assert [request.headers.get("range") for request in rig.requests] == [None, None]


async def test_a_host_without_ranges_sends_all_of_it_again(tmp_path):
    rig = Rig(tmp_path, {"stop_after": 700_000}, {"body": BODY})
    async with rig.client() as client:
        await download(client, "/x.zip", rig.target, sha256=SHA)
    assert rig.requests[1].headers["range"] == "bytes=700000-"
    assert rig.target.read_bytes() == BODY


async def test_a_file_that_became_shorter_begins_anew(tmp_path):
    rig = Rig(tmp_path, {"stop_after": 700_000}, {"status": 416, "body": b""})
    async with rig.client() as client:
        with pytest.raises(Retry):
            await download(client, "/x.zip", rig.target, sha256=SHA)
        await download(client, "/x.zip", rig.target, sha256=SHA)
    assert rig.requests[-1].headers.get("range") is None


async def test_a_wrong_checksum_leaves_the_evidence(tmp_path):
    rig = Rig(tmp_path)
    async with rig.client() as client:
        with pytest.raises(Damaged, match=f"its SHA-256 is {SHA}, the venue says 00"):
            await download(client, "/x.zip", rig.target, sha256="00" * 32)
    assert rig.left() == ["x.zip.damaged"]


async def test_what_is_not_there(tmp_path):
    rig = Rig(tmp_path, {"status": 404, "body": b"<Error><Code>NoSuchKey</Code></Error>"})
    async with rig.client() as client:
        with pytest.raises(Missing, match=r"/x\.zip: not there"):
            await download(client, "/x.zip", rig.target)
    assert rig.left() == []


async def test_a_full_disk_is_told(tmp_path):
    rig = Rig(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with rig.client() as client:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_900_000, before[1]))
        try:
            with pytest.raises(PluginError, match=r"cannot keep x.zip in .*free space there"):
                await download(client, "/x.zip", rig.target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_removing_a_download_removes_what_is_beside_it(tmp_path):
    for name in ("x.zip", "x.zip.part", "x.zip.part.json", "y.zip"):
        (tmp_path / name).touch()
    remove_download(tmp_path / "x.zip")
    remove_download(tmp_path / "x.zip")
    assert os.listdir(tmp_path) == ["y.zip"]
