"""A daemon beside a real Redis that dies, comes back, and may have forgotten everything."""

from __future__ import annotations

import json
import sys
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path

import pytest
from daemon_rig import CONFIG, running, store_candles, wait_for

sys.path.append(str(Path(__file__).resolve().parents[1] / "plugins"))
sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
from redis_rig import entries, private_redis
from verify_hash import record

pytestmark = pytest.mark.services
DAYS = 6
CONFIGURED = """
[sinks.redis]
plugin = "redis"
url = "{url}"
password = {{ env = "REDIS_SECRET" }}
stream = true

[sinks.files]
plugin = "file"
path = "{{folder}}/out/{{session_id}}.ndjson"
"""


@pytest.fixture
def server(tmp_path):
    with private_redis(tmp_path / "redis", "--requirepass", "hunter2") as one:
        yield one


def test_killed_and_revived_during_a_replay(server, tmp_path):
    config = CONFIG + CONFIGURED.format(url=server.url)
    with running(tmp_path, config, environ={"REDIS_SECRET": "hunter2"}) as daemon:
        [series] = store_candles(daemon, DAYS * 1440)
        daemon.ctl(
            "session", "create", "--series", series, "--from", "2024-03-01",
            "--to", f"2024-03-0{DAYS + 1}", "--speed", "max", "--id", "s", "--paused",
            "--sink", "redis", "--sink", "files",
        )  # fmt: skip
        client = server.client()
        client("AUTH", "hunter2")
        wait_for(lambda: client("SISMEMBER", "replay:paused", "s"), "it to be among the paused")
        server.kill()
        daemon.ctl("session", "resume", "s")
        server.start()
        client = server.client()
        client("AUTH", "hunter2")

        def state(sink):
            shown = daemon.ask("session.show", session_id="s")["sinks"]
            return next(one for one in shown if one["name"] == sink)

        wait_for(lambda: state("redis")["state"] == "done", "redis to have everything")
        wait_for(lambda: state("files")["state"] == "done", "the files to be complete")
        shown = json.loads(client("GET", "replay:session:s"))
        assert shown["status"] == "finished"
        assert not client("SISMEMBER", "replay:paused", "s")
        digest, seqs = blake2b(digest_size=32), []
        for _, row in entries(client, "s"):
            digest.update(record(row["channel"], json.loads(row["data"], parse_float=Decimal)))
            seqs.append(int(row["seq"]))
        assert seqs == list(range(1, DAYS * 1440 + 1))
        assert digest.hexdigest() == shown["end"]["hash"]
        lines = (tmp_path / "out" / "s.ndjson").read_text().splitlines()
        assert [json.loads(line)["seq"] for line in lines] == seqs
        assert "hunter2" not in daemon.log + daemon.ctl("config", "show")


def test_a_redis_that_forgets_is_told_all_again(tmp_path):
    with private_redis(tmp_path / "redis", "--appendonly", "no") as server:
        config = (
            CONFIG + f'\n[sinks.redis]\nplugin = "redis"\nurl = "{server.url}"\nstream = true\n'
        )
        with running(tmp_path, config) as daemon:
            [series] = store_candles(daemon, DAYS * 1440)
            words = ["--from", "2024-03-01", "--to", f"2024-03-0{DAYS + 1}", "--speed", "max"]
            words += ["--id", "s", "--sink", "redis", "--paused"]
            daemon.ctl("session", "create", "--series", series, *words)
            for count in (1000, 1, 2500):
                daemon.ctl("session", "step", "s", count)
                server.kill()  # whether it has all of them or not
                server.start()
            daemon.ctl("session", "resume", "s")
            wait_for(
                lambda: daemon.ask("session.show", session_id="s")["sinks"][0]["state"] == "done",
                "redis to have everything",
            )
        client = server.client()
        seqs = [int(row["seq"]) for _, row in entries(client, "s")]
        assert seqs == list(range(1, DAYS * 1440 + 1))
        assert json.loads(client("GET", "replay:session:s"))["status"] == "finished"


def test_a_durable_session_goes_on_where_the_stream_ends(server, tmp_path):
    config = CONFIG + (
        f'\n[sinks.redis]\nplugin = "redis"\nurl = "{server.url}"\npassword = "hunter2"\n'
        "stream = true\n"
    )
    with running(tmp_path, config) as daemon:
        [series] = store_candles(daemon, DAYS * 1440)
        words = ["--from", "2024-03-01", "--to", f"2024-03-0{DAYS + 1}", "--speed", "max"]
        words += ["--id", "s", "--sink", "redis", "--paused", "--durable"]
        daemon.ctl("session", "create", "--series", series, *words)
        for count in (1500, 1, 3000):
            daemon.ctl("session", "step", "s", count)
            daemon.kill()  # whether redis has all of them or not
            daemon.start()
        daemon.ctl("session", "seek", "s", "2024-03-02")
        daemon.ctl("session", "resume", "s")
        wait_for(
            lambda: daemon.ask("session.show", session_id="s")["sinks"][0]["state"] == "done",
            "redis to have everything",
        )
    client = server.client()
    client("AUTH", "hunter2")
    epochs = {"1": [], "2": []}
    for _, row in entries(client, "s"):
        epochs[row["epoch"]].append(int(row["seq"]))
    assert epochs["1"] == list(range(1, len(epochs["1"]) + 1))
    shown = json.loads(client("GET", "replay:session:s"))
    assert epochs["2"] == list(range(1, shown["end"]["ticks"] + 1))
    assert len(epochs["2"]) == (DAYS - 1) * 1440 + 1
