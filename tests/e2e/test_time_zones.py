"""Wherever the machine thinks it is, summer time or not, what comes out is the same to the byte."""

from __future__ import annotations

import re
import zoneinfo

import pytest
from daemon_rig import ENVIRON, running

# Days on which clocks are set in New York and on Lord Howe Island (there by half an hour).
DAYS = ("2024-03-10", "2024-04-06", "2024-10-05", "2024-11-03")
FIRST_MS = 1_704_067_200_000  # 2024-01-01T00:00:00Z
DAY_MS = 86_400_000
SERIES = ["synthetic:BTC/USDT@candle_1h", "synthetic:BTC/USDT@candle_1d"]


def hours(path, step, count):
    """Write candles of a length as plain OHLCV."""
    lines = ["timestamp,open,high,low,close,volume"]
    for at in range(count):
        price = 100 + at % 37
        lines.append(f"{FIRST_MS + at * step},{price},{price + 2},{price - 1},{price + 1},{at}.5")
    path.write_text("\n".join(lines) + "\n")
    return path


def words(folder, zone):
    """Return everything that a daemon and its command line say in a time zone."""
    folder.mkdir()
    environ = {**ENVIRON, "TZ": zone}
    said = []
    with running(folder, environ=environ) as daemon:
        for name, step, count in (("1h", DAY_MS // 24, 366 * 24), ("1d", DAY_MS, 366)):
            path = hours(folder / f"{name}.csv", step, count)
            imported = ["--exchange", "synthetic", "--symbol", "BTC/USDT"]
            command = ["data", "import", path, *imported, "--data-type", f"candle_{name}"]
            daemon.ctl(*command, env=environ)
        for series in SERIES:
            out = folder / "out.csv"
            span = ["--from", "2024-03-09", "--to", "2024-03-12"]
            daemon.ctl("data", "export", series, *span, "--format", "csv", "-o", out, env=environ)
            said.append(out.read_bytes())
            said.append(daemon.ctl("series", "coverage", series, env=environ).encode())
        with daemon.websocket() as client:
            for day in DAYS:
                span = {"start_time": f"{day}T00:00:00Z", "end_time": FIRST_MS + 366 * DAY_MS}
                client.send("create_session", session_id=day, series=SERIES, speed="max", **span)
                said += frames(client)
        shown = daemon.ctl("session", "show", DAYS[0], env=environ).splitlines()
        said += [line.encode() for line in shown if line.split()[0] in {"start_time", "clock"}]
    return [re.sub(rb'"replay_time":\d+', b"", one) for one in said]


def frames(client):
    """Return the text frames of a session as they come, to its end."""
    found = []
    while not found or b'"type":"end"' not in found[-1]:
        opcode, payload = client._frame()
        assert opcode in {1, 9}
        if opcode == 1:
            found.append(payload)
    return found


@pytest.mark.parametrize("zone", ["America/New_York", "Australia/Lord_Howe"])
def test_summer_time_is_nothing_to_it(zone, tmp_path):
    if zone not in zoneinfo.available_timezones():
        pytest.skip(f"this system does not know {zone}")
    wanted, found = words(tmp_path / "utc", "UTC"), words(tmp_path / "there", zone)
    assert len(wanted) > len(DAYS) * 1000
    assert found == wanted
