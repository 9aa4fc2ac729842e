"""A real daemon with the HTTP sink, from the first request to the last, and a stranger's page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from daemon_rig import ENVIRON, Daemon, run

README = Path(__file__).resolve().parents[2] / "plugins" / "tardisd_http" / "README.md"
CONFIG = """
[daemon]
data_dir = "{folder}/data"
control_socket = "{folder}/control.sock"
log_format = "text"

[plugins]
dirs = ["{folder}/plugins"]

[storages.main]
plugin = "sqlite"

[exchanges.synthetic]
plugin = "synthetic"

[sinks.console]
plugin = "console"

[sinks.http]
plugin = "http"
listen = "127.0.0.1:0"
"""
DAY = {"start_time": "2024-03-01T00:00:00Z", "end_time": "2024-03-02T00:00:00Z"}


@pytest.fixture
def daemon(tmp_path):
    """Run a daemon with a stored day and the console of the README."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins").chmod(0o755)
    [console] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "plugins" / "console.py").write_text(console)
    (tmp_path / "plugins" / "console.py").chmod(0o644)
    one = Daemon(tmp_path, CONFIG)
    try:
        series = "synthetic:BTC/USDT@candle_1m"
        span = ("--from", "2024-03-01", "--to", "2024-03-02")
        one.ctl("backfill", "run", series, *span, "--wait")
        yield one
    finally:
        one.close()


def url_of(daemon):
    """Return where the daemon listens, as its log says."""
    return re.findall(r"http listening.*url=(\S+)", daemon.log)[-1].rstrip("/")


def ask(url, content=None, method=None):
    """Return (status, JSON or text) of an answer."""
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            status, body = answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            status, body = refused.code, refused.read().decode()
    return status, json.loads(body) if body.startswith("{") else body


def test_from_the_first_request_to_the_last(daemon):
    url = url_of(daemon)
    assert ask(f"{url}/health") == (200, {"type": "health", "live": True, "ready": True})
    [stored] = ask(f"{url}/api/series")[1]["series"]
    assert (stored["series"], stored["rows"]) == ("synthetic:BTC/USDT@candle_1m", 1440)
    asked = {"exchange": "synthetic", "symbol": "BTC/USDT", "session_id": "s", **DAY}
    status, made = ask(f"{url}/api/replay/create", {**asked, "speed": "max"})
    assert (status, made["type"]) == (201, "session_created")
    with urllib.request.urlopen(
        f"{url}/api/replay/s/stream?epoch=1&from_seq=0", timeout=30
    ) as answer:
        lines = [json.loads(line) for line in answer]
    seqs = [line["seq"] for line in lines if "channel" in line]
    assert seqs == list(range(1, 1441))
    assert (lines[-1]["type"], lines[-1]["reason"]) == ("end", "finished")
    told = daemon.json("session", "show", "s")
    assert told["origin"] == "http"
    status, metrics = ask(f"{url}/metrics")
    assert 'tardisd_sessions{status="finished"} 1.0' in metrics
    assert ask(f"{url}/console") == (200, "1 sessions\n")
    assert "/console" in ask(f"{url}/openapi.json")[1]["paths"]
    assert ask(f"{url}/api/replay/s/pause", method="POST")[0] == 409


def test_a_stream_hears_that_the_daemon_stops(daemon):
    url = url_of(daemon)
    asked = {"exchange": "synthetic", "symbol": "BTC/USDT", "session_id": "s", "speed": 1, **DAY}
    ask(f"{url}/api/replay/create", asked)
    with urllib.request.urlopen(f"{url}/api/replay/s/stream", timeout=30) as answer:
        assert json.loads(answer.readline())["type"] == "subscribed"
        daemon.stop()
        lines = [json.loads(line) for line in answer]
    assert (lines[-1]["type"], lines[-1]["reason"]) == ("end", "stopped")


def test_without_its_packages_it_says_how_to_get_them(tmp_path):
    """Hide hypercorn from a fresh interpreter: the plugin is unavailable, with the pip command."""
    code = (
        "import importlib.util as util, sys\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'hypercorn' else find(name, *rest)\n"
        "from tardisd.plugins.registry import Registry\n"
        "[one] = [it for it in Registry.discover().plugins if it.name == 'http']\n"
        "print(one.state, one.reason)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRON
    )
    assert done.stdout.startswith("unavailable package hypercorn is missing")
    assert "pip install 'tardisd[http]'" in done.stdout


def test_check_says_that_other_addresses_need_a_token(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(
        '[storages.main]\nplugin = "sqlite"\n[sinks.http]\nplugin = "http"\n'
        'listen = "0.0.0.0:8000"\n'
    )
    done = run("tardisd", "check", "-c", path, code=78)
    assert "set token, or listen on 127.0.0.1" in done.stderr
