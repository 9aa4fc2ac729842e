"""Asking a venue: what is retried, what is final, and what it costs, against a real server."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest
import trio

from tardisd.errors import PluginError, RequestError, Retry
from tardisd.testing.venues.server import Answer, Request, serve
from tardisd.venue.budget import Budget, Limit
from tardisd.venue.client import (
    Missing,
    Patience,
    Unreadable,
    VenueClient,
    Verdict,
    retry_after,
    usual_verdict,
)

HASTY = Patience(attempts=4, first_wait_secs=0.001, most_closed_secs=0.5)
HURRIED = replace(HASTY, request_secs=1.0)  # for who is kept waiting on purpose


def judge(answer: httpx.Response, body: bytes) -> Verdict:
    if answer.status_code == 400:
        return Verdict(fatal=RequestError("bad_request", "no such symbol"))
    return usual_verdict(answer)


class Rig:
    """A server that gives prepared answers one by one, the last again and again."""

    def __init__(self, *answers: Answer | Callable[[Request], Answer]) -> None:
        self.requests: list[Request] = []
        self.budget = Budget("venue", [Limit("weight", 1000, 60.0)], 1.0)
        self._answers = list(answers)

    async def handle(self, request: Request) -> Answer:
        self.requests.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return answer if isinstance(answer, Answer) else answer(request)

    @asynccontextmanager
    async def client(self, **options):
        options.setdefault("patience", HASTY)
        async with serve({"rest": self.handle}) as urls:
            client = VenueClient(urls["rest"] + "/", self.budget, judge, **options)
            async with client.opened():
                yield client


FINE = Answer(b"fine")


async def test_a_request_is_made_as_asked():
    rig = Rig(FINE)
    async with rig.client(user_agent="me/1") as client:
        assert await client.get("/api/x", {"symbol": "币安USDT", "limit": 5}, weight=7) == b"fine"
    [request] = rig.requests
    assert request.path == "/api/x"
    assert request.params == {"symbol": "币安USDT", "limit": "5"}
    assert request.headers["user-agent"] == "me/1"
    assert request.headers["accept-encoding"] == "gzip"
    assert rig.budget.usage() == {"weight": 0.007}


async def test_a_compressed_answer_is_unpacked():
    rig = Rig(Answer(gzip.compress(b"fine"), headers={"Content-Encoding": "gzip"}))
    async with rig.client() as client:
        assert await client.get("/") == b"fine"


@pytest.mark.parametrize(
    "trouble",
    [
        Answer(status=500),
        Answer(status=503, headers={"Retry-After": "0"}),
        Answer(status=408),
        Answer(status=429, headers={"Retry-After": "0"}),
        Answer(b"x" * 1000, stop_after=500),
        Answer(b"x" * 1000, stop_after=500, reset=True),
        Answer(b"x", reset=True),
        Answer(b"x", stall_secs=60.0),
        Answer(b"no gzip", headers={"Content-Encoding": "gzip"}),
        Answer(gzip.compress(b"x" * 99)[:-9], headers={"Content-Encoding": "gzip"}),
    ],
    ids=[
        "500",
        "503",
        "408",
        "429",
        "cut off",
        "reset",
        "reset at once",
        "stall",
        "bad gzip",
        "gzip cut off",
    ],
)
async def test_what_may_pass_is_tried_again_and_paid_again(trouble):
    rig = Rig(trouble, trouble, FINE)
    async with rig.client(patience=HURRIED if trouble.stall_secs else HASTY) as client:
        assert await client.get("/", weight=2) == b"fine"
    assert len(rig.requests) == 3
    assert rig.budget.usage() == {"weight": 0.006}


async def test_an_answer_that_drips_is_given_up():
    rig = Rig(Answer(b"x" * 100, stall_after=50, stall_secs=60.0))
    async with rig.client(patience=HURRIED) as client:
        with pytest.raises(Retry, match=r"/x: ReadTimeout; given up after 4 attempts"):
            await client.get("/x")


@pytest.mark.parametrize(
    ("answer", "error", "told"),
    [
        (Answer(status=404), Missing, "/x: not there (HTTP 404 Not Found)"),
        (Answer(status=301, headers={"Location": "https://else"}), RequestError, "https://else"),
        (Answer(status=407), RequestError, "the proxy wants a login"),
        (Answer(status=403), RequestError, "refused with HTTP 403 Forbidden"),
        (Answer(status=400), RequestError, "no such symbol"),
    ],
)
async def test_what_is_final_is_asked_once(answer, error, told):
    rig = Rig(answer)
    async with rig.client() as client:
        with pytest.raises(error) as caught:
            await client.get("/x", {"secret": "y"})
    assert told in caught.value.message
    assert "secret" not in caught.value.message
    assert len(rig.requests) == 1


async def test_an_answer_that_cannot_be_read_is_asked_for_again():
    def read(body: bytes) -> int:
        if not body.isdigit():
            raise Unreadable(f"not a number: {body!r}")
        return int(body)

    rig = Rig(Answer(b"<html>"), Answer(b"42"))
    async with rig.client() as client:
        assert await client.read("/", None, read) == 42
        rig.requests.clear()
    rig = Rig(Answer(b"<html>"))
    async with rig.client() as client:
        with pytest.raises(Retry, match="not a number: b'<html>'; given up after 4"):
            await client.read("/", None, read)


async def test_retry_after_holds_all_back():
    rig = Rig(Answer(status=429, headers={"Retry-After": "0.2"}), FINE)
    async with rig.client() as client:
        with trio.fail_after(100):
            start = trio.current_time()
            assert await client.get("/") == b"fine"
            assert trio.current_time() - start >= 0.2
    rig.budget.cool_down(100.0, "banned for a while")
    async with rig.client() as client:
        with pytest.raises(Retry, match="not asked: banned for a while until 2") as caught:
            await client.get("/")
        assert 90 < caught.value.after <= 100
    assert len(rig.requests) == 2


async def test_at_most_so_many_requests_at_once():
    at_once: list[int] = []
    open_ = 0

    async def handle(request: Request) -> Answer:
        nonlocal open_
        open_ += 1
        at_once.append(open_)
        await trio.sleep(0.01)
        open_ -= 1
        return FINE

    async with serve({"rest": handle}) as urls:
        client = VenueClient(urls["rest"], Budget("venue", [], 1.0), judge, concurrency=3)
        async with client.opened(), trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(client.get, "/")
    assert max(at_once) == 3


async def test_nobody_there():
    async with serve({"rest": Rig(FINE).handle}) as urls:
        gone = urls["rest"]
    client = VenueClient(gone, Budget("venue", [], 1.0), judge, patience=HASTY)
    async with client.opened():
        with pytest.raises(Retry, match=r"cannot connect .* check the network"):
            await client.get("/")
    client = VenueClient("http://no-such-host.invalid", Budget("v", [], 1.0), judge, patience=HASTY)
    async with client.opened():
        with pytest.raises(Retry, match=r"cannot connect .* DNS"):
            await client.get("/")


async def test_an_untrusted_certificate_is_final():
    trustme = pytest.importorskip("trustme")
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
        port = listeners[0].transport_listener.socket.getsockname()[1]

        async def talk(stream: trio.SSLStream[trio.SocketStream]) -> None:
            with pytest.raises(trio.BrokenResourceError):
                await stream.do_handshake()

        await nursery.start(trio.serve_listeners, talk, listeners)
        client = VenueClient(f"https://127.0.0.1:{port}", Budget("v", [], 1.0), judge)
        async with client.opened():
            with pytest.raises(RequestError, match="certificate is not trusted"):
                await client.get("/")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("url", ["", "api.binance.com", "ftp://x", "http://", "/x"])
async def test_an_address_that_is_none_is_told_at_once(url):
    client = VenueClient(url, Budget("venue", [], 1.0), judge)
    with pytest.raises(PluginError, match="is no usable address"):
        async with client.opened():
            pass


async def test_a_proxy_that_is_none_is_told_at_once():
    client = VenueClient("http://x", Budget("venue", [], 1.0), judge, proxy="gopher://x")
    with pytest.raises(PluginError, match="or proxy gopher://x is no usable address"):
        async with client.opened():
            pass


async def test_the_proxy_is_used():
    rig = Rig(FINE)
    async with serve({"proxy": rig.handle}) as urls:
        client = VenueClient(
            "http://venue.invalid", Budget("venue", [], 1.0), judge, proxy=urls["proxy"]
        )
        async with client.opened():
            assert await client.get("/x") == b"fine"
    assert rig.requests[0].headers["host"] == "venue.invalid"


async def test_asked_outside_its_lifetime():
    client = VenueClient("http://x", Budget("venue", [], 1.0), judge)
    with pytest.raises(PluginError, match="outside the client's lifetime"):
        await client.get("/")


@pytest.mark.parametrize(
    ("text", "secs"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("999999999", 259_200.0),
        ("Wed, 15 Nov 2023 00:00:10 GMT", 10.0),
        ("Tue, 14 Nov 2023 00:00:10 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_retry_after_in_seconds_or_as_a_date(text, secs):
    now = 1_700_006_400_000_000_000  # 2023-11-15T00:00:00Z
    assert retry_after({"retry-after": text}, now) == secs
    assert retry_after({}, now) is None
