"""A daemon beside a receiver that fails now and then, and beside servers that are not there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from daemon_rig import CONFIG, running, store_candles, wait_for

sys.path.append(str(Path(__file__).resolve().parents[1] / "plugins"))
from webhook_rig import HookServer, answer

DAYS = 6
COUNT = DAYS * 1440
CONFIGURED = """
[sinks.hook]
plugin = "webhook"
url = "{url}"
secret = {{ env = "HOOK_SECRET" }}
backoff_secs = 0.01

[sinks.astray]
plugin = "webhook"
url = "http://127.0.0.1:1/hook?token=hunter2"
patience_secs = 0.0
backoff_secs = 0.01
batch_ms = 0
max_attempts = 3

[sinks.adrift]
plugin = "redis"
url = "redis://:hunter2@127.0.0.1:1/0"
patience_secs = 0

[sinks.files]
plugin = "file"
path = "{{folder}}/out/{{session_id}}.ndjson"
"""


def test_one_that_fails_harms_no_other(tmp_path):
    def behave(number, request):
        return answer(503) if number % 3 == 0 else answer()

    config = CONFIG.replace("[storages.main]", "shutdown_secs = 1\n\n[storages.main]")
    with HookServer(behave).running_apart() as server:
        config += CONFIGURED.format(url=server.url)
        with running(tmp_path, config, environ={"HOOK_SECRET": "hush"}) as daemon:
            [series] = store_candles(daemon, COUNT)
            words = ["--sink", "hook", "--sink", "astray", "--sink", "files", "--id", "s"]
            words += ["--sink", "adrift"]
            words += ["--from", "2024-03-01", "--to", f"2024-03-0{DAYS + 1}", "--speed", "max"]
            daemon.ctl("session", "create", "--series", series, *words)

            def state(sink):
                shown = daemon.ask("session.show", session_id="s")["sinks"]
                return next(one for one in shown if one["name"] == sink)

            wait_for(lambda: state("astray")["error"], "the other to say what is wrong")
            for sink in ("hook", "files"):
                wait_for(lambda sink=sink: state(sink)["state"] == "done", f"{sink} to be done")
            assert server.seqs() == list(range(1, COUNT + 1))
            lines = (tmp_path / "out" / "s.ndjson").read_text().splitlines()
            assert len(lines) == COUNT
            lost = wait_for(lambda: state("adrift")["error"], "redis to say what is wrong")
            assert lost.startswith("redis at 127.0.0.1:1 cannot be reached: ")
            error = state("astray")["error"]
            assert error.startswith("http://127.0.0.1:1/hook: no answer: ")
            shown = daemon.log + daemon.ctl("config", "show") + error
            assert "hunter2" not in shown
            assert "t0ps3cret" not in shown
    lost = [
        json.loads(line)
        for line in (tmp_path / "data" / "astray-dead.ndjson").read_text().splitlines()
    ]
    seqs = []
    for letter in lost:
        if "request" in letter:
            first = letter["request"]["first_seq"]
            seqs += range(first, first + len(letter["request"]["ticks"]))
        else:
            seqs += range(letter["from_seq"], letter["to_seq"] + 1)
    assert seqs == list(range(1, COUNT + 1))  # each is in there, or named as dropped
