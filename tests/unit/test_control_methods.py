"""What the control methods do, on the real engine: sessions, series, plugins, configuration."""

from __future__ import annotations

import os

import pytest
import trio
import trio.testing
from control_rig import CANDLES, DAY, START, running, store_candles

from tardisd.market.series import Series
from tardisd.market.span import Gap, Span
from tardisd.market.time import MILLISECOND, MINUTE
from tardisd.plugins.exchange import Page
from tardisd.testing.ticks import random_candles

MS = START // MILLISECOND


@pytest.fixture
async def rig(tmp_path):
    async with running(tmp_path) as one:
        yield one


async def test_a_session_from_creation_to_removal(rig):
    await store_candles(rig.storage)
    async with rig.client() as client:
        created = await client.result(
            "session.create",
            series=[CANDLES.text],
            session_id="s",
            start_paused=True,
            speed=60,
            on_gap="skip",
            **DAY,
        )
        assert created["session_id"] == "s"
        assert created["status"] == "paused"
        assert created["start_time"] == MS
        shown = await client.result("session.show", session_id="s")
        assert shown["series"] == [CANDLES.text]
        assert [one["session_id"] for one in await client.result("session.list")] == ["s"]
        assert (await client.result("session.resume", session_id="s"))["type"] == "resumed"
        assert (await client.result("session.pause", session_id="s"))["type"] == "paused"
        faster = await client.result("session.speed", session_id="s", speed="max")
        assert (faster["type"], faster["speed"]) == ("speed_changed", "max")
        assert await client.refusal("session.remove", session_id="s") == "wrong_state"
        assert (await client.result("session.stop", session_id="s"))["type"] == "stopped"
        assert await client.refusal("session.pause", session_id="s") == "wrong_state"
        await client.result("session.remove", session_id="s")
        assert await client.refusal("session.show", session_id="s") == "session_not_found"


async def test_refusals_of_session_requests(rig):
    await store_candles(rig.storage)
    async with rig.client() as client:
        good = {"series": [CANDLES.text], **DAY}
        for wrong in (
            {"series": ["nonsense"]},
            {"series": []},
            {"start_time": "2024-03-01"},
            {"start_time": "2024-03-02T00:00:00Z", "end_time": "2024-03-01T00:00:00Z"},
            {"speed": 0},
            {"speed": "fast"},
            {"storage": "nowhere"},
            {"session_id": "a b"},
        ):
            assert await client.refusal("session.create", **{**good, **wrong}) == "bad_request"
        missing = {**good, "series": ["okx:BTC/USDT@trade"]}
        assert await client.refusal("session.create", **missing) == "no_data"


async def test_a_preset(rig):
    await store_candles(rig.storage)
    async with rig.client() as client:
        assert (await client.result("session.start", preset="demo"))["session_id"] == "demo"
        again = await client.result("session.start", preset="demo")
        assert again["session_id"] != "demo"
        named = await client.result("session.start", preset="demo", session_id="mine")
        assert named["session_id"] == "mine"
        answer, _ = await client.ask("session.start", preset="dmeo")
        assert "demo" in answer["error"]["message"]


async def test_watching_to_the_end(rig):
    await store_candles(rig.storage)
    async with rig.client() as watcher, rig.client() as other:
        await other.result(
            "session.create",
            series=[CANDLES.text],
            session_id="s",
            start_paused=True,
            speed="max",
            **DAY,
        )
        await watcher.send(watcher.line("session.watch", session_id="s", max_ticks=10_000))
        with trio.fail_after(100):
            while not (await other.result("session.show", session_id="s"))["subscribers"]:
                await trio.sleep(0.01)
        await other.result("session.resume", session_id="s")
        answer, told = await watcher.answer()
        assert answer["result"]["type"] == "end"
        assert answer["result"]["reason"] == "finished"
        assert answer["result"]["ticks"] == 1440
        ticks = [one["params"] for one in told if one["method"] == "session.ticks"]
        notices = [one["params"] for one in told if one["method"] == "session.notice"]
        assert [notice["type"] for notice in notices] == ["resumed", "end"]
        assert sum(len(one["data"]) + one["skipped"] for one in ticks) == 1440
        first = ticks[0]
        assert (first["session_id"], first["epoch"], first["first_seq"]) == ("s", 1, 1)
        assert first["data"][0]["timestamp"] == MS
        assert first["data"][0]["seq"] == 1


async def test_watchers_see_the_newest_of_many(rig):
    await store_candles(rig.storage)
    async with rig.client() as watcher, rig.client() as other:
        await other.result(
            "session.create",
            series=[CANDLES.text],
            session_id="s",
            start_paused=True,
            speed="max",
            **DAY,
        )
        await watcher.send(watcher.line("session.watch", session_id="s", max_ticks=3))
        with trio.fail_after(100):
            while not (await other.result("session.show", session_id="s"))["subscribers"]:
                await trio.sleep(0.01)
        await other.result("session.resume", session_id="s")
        _, told = await watcher.answer()
        ticks = [one["params"] for one in told if one["method"] == "session.ticks"]
        assert all(len(one["data"]) <= 3 for one in ticks)
        assert all(one["data"][0]["seq"] == one["first_seq"] for one in ticks)
        assert ticks[-1]["data"][-1]["seq"] == 1440
        assert any(one["skipped"] for one in ticks)


async def test_listing_series(rig):
    await store_candles(rig.storage, 10)
    async with rig.client() as client:
        (one,) = await client.result("series.list")
        assert one["series"] == CANDLES.text
        assert one["rows"] == 10
        assert one["first"] == MS
        assert one["first_time"] == "2024-03-01T00:00:00.000Z"
        found = await client.result("series.coverage", series="binance:BTCUSDT@candle_1m")
        assert found["series"] == CANDLES.text
        assert [(span["from"], span["to"]) for span in found["spans"]] == [(MS, MS + 600_000)]
        part = await client.result(
            "series.coverage", series=CANDLES.text, **{"from": MS + 60_000, "to": MS + 120_000}
        )
        assert [span["start"] for span in part["spans"]] == ["2024-03-01T00:01:00.000Z"]
        nothing = await client.result("series.coverage", series="okx:BTC/USDT@trade")
        assert nothing["spans"] == []


async def test_gaps_uncovered_and_covered(rig):
    batch = random_candles(CANDLES, 60, START)
    kept = batch[[at for at in range(60) if at not in (5, 6, 20)]]
    half = Span(START, START + 30 * MINUTE)
    await rig.storage.append(CANDLES, Page(kept.within(half), half))
    rest = Span(START + 40 * MINUTE, START + 60 * MINUTE)
    await rig.storage.append(CANDLES, Page(kept.within(rest), rest))
    down = Span(START + 20 * MINUTE, START + 21 * MINUTE)
    await rig.storage.record_gaps(CANDLES, [Gap(down, "exchange_down")])
    async with rig.client() as client:
        found = await client.result("series.gaps", series=CANDLES.text)
        minutes = [
            ((gap["from"] - MS) // 60_000, (gap["to"] - MS) // 60_000, gap["cause"])
            for gap in found["gaps"]
        ]
        assert minutes == [(5, 7, "unknown"), (20, 21, "exchange_down"), (30, 40, "not_fetched")]
        assert found["truncated"] is False
        beyond = await client.result(
            "series.gaps",
            series=CANDLES.text,
            limit=1,
            **{"from": MS + 50 * 60_000, "to": MS + 70 * 60_000},
        )
        assert [gap["start"] for gap in beyond["gaps"]] == ["2024-03-01T01:00:00.000Z"]
        nothing = await client.result("series.gaps", series="okx:BTC/USDT@trade")
        assert nothing["gaps"] == []


async def test_misaligned_candles_leave_no_hole(rig):
    shifted = Series.parse("okx:BTC/USDT@candle_1m")
    batch = random_candles(shifted, 10, START)
    batch.ts_event[5:] += 30_000 * MILLISECOND
    span = Span(START, START + 11 * MINUTE)
    await rig.storage.append(shifted, Page(batch, span))
    async with rig.client() as client:
        found = await client.result("series.gaps", series=shifted.text)
        minutes = [
            ((gap["from"] - MS) / 60_000, (gap["to"] - MS) / 60_000) for gap in found["gaps"]
        ]
        assert minutes == [(5, 5.5), (10.5, 11)]


async def test_deleting(rig):
    await store_candles(rig.storage, 10)
    async with rig.client() as client:
        for wrong in ({}, {"from": MS}, {"all": True, "from": MS}, {"from": MS + 1, "to": MS}):
            assert await client.refusal("series.delete", series=CANDLES.text, **wrong) == (
                "bad_request"
            )
        part = {"from": MS, "to": MS + 180_000}
        assert (await client.result("series.delete", series=CANDLES.text, **part))["rows"] == 3
        rest = await client.result("series.delete", series=CANDLES.text, all=True)
        assert rest["rows"] == 7
        assert (await client.result("series.coverage", series=CANDLES.text))["spans"] == []


async def test_plugins_and_instances(rig):
    async with rig.client() as client:
        found = {(one["kind"], one["name"]): one for one in await client.result("plugin.list")}
        assert found["storage", "sqlite"]["state"] == "loaded"
        shown = await client.result("plugin.show", name="sqlite")
        assert shown["options"]["durability"]["default"] == "normal"
        for one in found.values():
            await client.result("plugin.show", name=one["name"], kind=one["kind"])
        assert await client.refusal("plugin.show", name="sqlight") == "bad_request"
        assert len(await client.result("instance.list")) == 2
        assert (await client.result("instance.show", name="main"))["plugin"] == "sqlite"


async def test_the_configuration(rig):
    async with rig.client() as client:
        shown = await client.result("config.show")
        assert shown["storages"]["main"]["plugin"] == "sqlite"
        assert await client.result("config.check") == {"valid": True, "problems": []}
        rig.services.config.path.write_text("[daemon]\nstorge = 1\n")
        checked = await client.result("config.check")
        assert checked["valid"] is False
        assert ("daemon.storge", 2) in [(it["key"], it["line"]) for it in checked["problems"]]


MADE = "synthetic:BTC/USDT@candle_1m"


async def test_a_backfill_fetches_only_what_is_missing(rig):
    span = {"from": MS, "to": MS + 3_600_000}
    async with rig.client() as client:
        answer, told = await client.ask("backfill.run", series=[MADE], wait=True, **span)
        (result,) = answer["result"]["results"]
        assert result["series"] == MADE
        assert result["complete"] is True
        assert result["added"] > 0
        last = told[-1]["params"]
        assert (last["done"], last["total"], last["unit"]) == (3_600 * 10**9, 3_600 * 10**9, "ns")
        assert last["job"].startswith("backfill.run-")
        again = await client.result("backfill.run", series=[MADE], wait=True, **span)
        assert [(it["pages"], it["added"], it["state"]) for it in again["results"]] == [
            (0, 0, "finished")
        ]
        listed = await client.result("backfill.list")
        assert [(job["id"], job["state"]) for job in listed] == [(1, "finished"), (2, "finished")]
        shown = await client.result("backfill.show", job=1)
        assert shown["rows"] == result["added"]
        assert (shown["from"], shown["to"]) == (span["from"], span["to"])
        assert await client.refusal("backfill.cancel", job=1) == "wrong_state"
        assert await client.refusal("backfill.show", job=99) == "bad_request"


async def test_refusals_of_backfills(rig):
    span = {"from": MS, "to": MS + 3_600_000}
    async with rig.client() as client:
        answer, _ = await client.ask("backfill.run", series=["okx:BTC/USDT@trade"], **span)
        assert "no exchange instance of okx is configured" in answer["error"]["message"]
        answer, _ = await client.ask("backfill.run", series=[MADE], exchange="other", **span)
        assert "'other'" in answer["error"]["message"]
        rig.services.exchanges["second"] = rig.services.exchanges["made"]
        answer, _ = await client.ask("backfill.run", series=[MADE], **span)
        assert "several instances" in answer["error"]["message"]
        await client.result("backfill.run", series=[MADE], exchange="second", wait=True, **span)
        quotes = MADE.replace("candle_1m", "quote")
        answer, _ = await client.ask("backfill.run", series=[quotes], exchange="made", **span)
        assert "synthetic has no quote; it has trade" in answer["error"]["message"]


async def test_an_import_ends_with_its_client(rig, tmp_path, monkeypatch):
    entered, cancelled = trio.Event(), trio.Event()

    async def append(series, page):
        entered.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    monkeypatch.setattr(rig.storage, "append", append)
    path = tmp_path / "trades.csv"
    path.write_text("time,id,price,amount,side\n1709251200000,1,100.5,2,buy\n")
    async with rig.client() as client:
        line = client.line(
            "data.import", exchange="x", symbol="A/B", data_type="trade", files=[path.name]
        )
        with path.open("rb") as file:
            await client.send_with_files(line, [file.fileno()])
        with trio.fail_after(100):
            await entered.wait()
    with trio.fail_after(100):
        await cancelled.wait()


async def test_an_export_to_a_full_disk_is_refused(rig):
    await store_candles(rig.storage)
    span = {"from": MS, "to": MS + 86_400_000}
    async with rig.client() as client:
        line = client.line("data.export", series=CANDLES.text, format="csv", **span)
        with open("/dev/full", "wb") as full:
            await client.send_with_files(line, [full.fileno()])
            answer, _ = await client.answer()
        assert "no space left" in answer["error"]["message"].lower()
        without = await client.refusal("data.export", series=CANDLES.text, format="csv", **span)
        assert without == "bad_request"


async def test_jobs_end_before_the_daemon_does(rig):
    await store_candles(rig.storage)
    reading, writing = os.pipe()
    span = {"from": MS, "to": MS + 86_400_000}
    async with rig.client() as client:
        line = client.line("data.export", series=CANDLES.text, format="ndjson", **span)
        await client.send_with_files(line, [writing])
        os.close(writing)
        await trio.lowlevel.wait_readable(reading)  # nobody reads on: the pipe is full soon
        with trio.fail_after(100):
            await rig.services.jobs.end_all()
        answer, _ = await client.answer()
        assert answer["error"]["data"]["code"] == "wrong_state"
        assert "stopping" in answer["error"]["message"]
        await client.send_with_files(line, [reading])
        answer, _ = await client.answer()
        assert "stopping" in answer["error"]["message"]
    os.close(reading)


async def test_an_export_through_a_pipe(rig):
    await store_candles(rig.storage)
    reading, writing = os.pipe()
    span = {"from": MS, "to": MS + 86_400_000}
    async with rig.client() as client, trio.lowlevel.FdStream(reading) as pipe:
        line = client.line("data.export", series=CANDLES.text, format="csv", **span)
        await client.send_with_files(line, [writing])
        os.close(writing)
        text = b""
        with trio.fail_after(100):
            while piece := await pipe.receive_some():
                text += piece
        answer, _ = await client.answer()
        assert answer["result"]["rows"] == 1440
        assert len(text.splitlines()) == 1441


async def test_a_reload_and_what_is_wrong_with_it(rig):
    async with rig.client() as client:
        assert await client.result("daemon.reload") == {"changed": []}
        path = rig.services.config.path
        path.write_text(path.read_text() + "\n[sinks.a]\n[sinks.b]\nplugin = 1\n")
        answer, _ = await client.ask("daemon.reload")
        assert answer["error"]["data"]["code"] == "config_invalid"
        found = answer["error"]["data"]["problems"]
        assert [(one["file"], one["key"]) for one in found] == [
            (str(path), "sinks.a.plugin"),
            (str(path), "sinks.b.plugin"),
        ]


async def test_an_instance_is_restarted_by_name_and_kind(rig):
    async with rig.client() as client:
        shown = await client.result("instance.restart", name="main")
        assert (shown["kind"], shown["name"]) == ("storage", "main")
        await client.result("instance.restart", name="made", kind="exchange")
        assert rig.restarted == [("storage", "main"), ("exchange", "made")]
        assert await client.refusal("instance.restart", name="made", kind="sink") == "bad_request"
        assert await client.refusal("instance.restart") == "bad_request"


async def test_sessions_of_the_daemon_before_are_waited_for(tmp_path):
    async with running(tmp_path) as rig, rig.client() as client:
        await store_candles(rig.storage)
        made = {"series": [CANDLES.text], "session_id": "s", "start_paused": True, **DAY}
        await client.result("session.create", durable=True, **made)
    async with running(tmp_path, restoring=True) as rig, rig.client() as client:
        assert (await client.result("daemon.status"))["version"], "this waits for nothing"
        await client.send(client.line("session.show", session_id="s"))
        for _ in range(20):
            await trio.testing.wait_all_tasks_blocked()
        await rig.services.sessions.restore()
        assert (await client.get())["result"]["status"] == "paused"
