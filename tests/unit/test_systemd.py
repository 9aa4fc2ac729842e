"""The notifier against a real datagram socket, and the unit file against systemd itself."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tardisd.systemd import Notifier

SYSTEMD = Path(__file__).resolve().parents[2] / "systemd"
UNIT = SYSTEMD / "tardisd.service"
MAX_EXPOSURE = 1.5

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A datagram socket as systemd opens it, and the value of NOTIFY_SOCKET for it."""
    if request.param == "path":
        name = bound = str(tmp_path / "notify")
    else:
        name = f"@tardisd-test-{os.getpid()}"
        bound = "\0" + name[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(bound)
        receiver.settimeout(5)
        yield receiver, name


def test_fields_arrive_in_one_datagram(manager):
    receiver, name = manager
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": name})
    assert notifier.enabled
    assert notifier.send(ready=1, status="2 sessions\nSTOPPING=1")
    assert receiver.recv(4096) == b"READY=1\nSTATUS=2 sessions STOPPING=1"


def test_reloading_carries_the_clock(manager):
    receiver, name = manager
    before = time.monotonic_ns() // 1000
    assert Notifier.from_environ({"NOTIFY_SOCKET": name}).reloading()
    sent = dict(line.split("=") for line in receiver.recv(4096).decode().splitlines())
    assert sent["RELOADING"] == "1"
    assert before <= int(sent["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_systemd_nothing_is_sent(environ):
    notifier = Notifier.from_environ(environ)
    assert not notifier.enabled
    assert not notifier.send(ready=1)
    assert notifier.watchdog_interval() is None


def test_a_socket_that_is_gone_is_no_error(tmp_path):
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    assert not notifier.send(watchdog=1)


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid() + 1)}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_watchdog_interval(environ, interval):
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": "/run/x", **environ})
    assert notifier.watchdog_interval() == interval


@needs_systemd
def test_the_unit_is_valid(tmp_path):
    text = UNIT.read_text().replace("/opt/tardisd/bin/tardisd", sys.executable)
    copy = tmp_path / UNIT.name
    copy.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_the_unit_exposes_little():
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)],
        capture_output=True,
        text=True,
        check=True,
    )
    exposure = re.search(r"Overall exposure level for tardisd\.service: (\d+\.\d+)", done.stdout)
    assert exposure is not None, done.stdout
    assert float(exposure[1]) <= MAX_EXPOSURE


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="no systemd-sysusers")
def test_the_user_is_made(tmp_path):
    (tmp_path / "etc").mkdir()
    subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", str(SYSTEMD / "sysusers.d/tardisd.conf")],
        check=True,
        capture_output=True,
    )
    assert re.search(
        r"^tardisd:x:\d+:\d+:.*:/var/lib/tardisd:/usr/sbin/nologin$",
        (tmp_path / "etc/passwd").read_text(),
        re.MULTILINE,
    )


@pytest.mark.skipif(
    shutil.which("systemd-tmpfiles") is None or os.geteuid() != 0,
    reason="needs systemd-tmpfiles and root, which gives the folders their owners",
)
def test_the_folders_are_made(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (tmp_path / "etc/group").write_text(f"root:x:0:\ntardisd:x:{os.getgid()}:\n")
    subprocess.run(
        [
            "systemd-tmpfiles",
            "--create",
            f"--root={tmp_path}",
            str(SYSTEMD / "tmpfiles.d/tardisd.conf"),
        ],
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "etc/tardisd").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "etc/tardisd/credentials").stat().st_mode & 0o777 == 0o700
