"""What the benches share: tools found or built, a ready daemon, its memory. It measures nothing.

Every child is ended by the context manager that started it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
RESULTS = HERE / "results"
PATIENCE_SECS = 60


def need(tool: str, why: str) -> str:
    """Return the path of a program, or leave with a message that says what is missing."""
    found = shutil.which(tool)
    if found is None:
        sys.exit(f"bench: {tool} not found; it is needed {why}")
    return found


def build_counter(name: str = "count") -> Path:
    """Compile a counting client when its source is newer."""
    compiler = need("cc", "to compile the counting client (on Debian: apt install gcc libc6-dev)")
    source, program = HERE / f"{name}.c", HERE / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        subprocess.run([compiler, "-O2", "-o", program, source], check=True)
    return program


def install_baseline() -> str:
    """Bring the Node package `ws` on first use; return the path of node."""
    node = need("node", "for the baseline server (Node 20 or newer)")
    if not (HERE / "node_modules" / "ws").is_dir():
        npm = need("npm", "to install the baseline's package ws")
        command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--silent"]
        subprocess.run(command, cwd=HERE, check=True)
    return node


def free_port() -> int:
    """Return a TCP port of the loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a child for as long as the block lasts."""
    with subprocess.Popen(command, **options) as child:
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()


@contextmanager
def daemon(config: Path) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """Run `tardisd run` and yield it, with how long it took to be ready (seconds)."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, 2) as manager:
        manager.bind(f"{folder}/notify")
        manager.settimeout(0.2)
        environ = {**os.environ, "NOTIFY_SOCKET": f"{folder}/notify"}
        with (config.parent / "daemon.log").open("wb") as log:
            begun = time.monotonic()
            command = [BIN / "tardisd", "run", "-c", config]
            with running(command, env=environ, stdout=log, stderr=log) as child:
                while True:
                    try:
                        if b"READY=1" in manager.recv(4096).splitlines():
                            break
                    except TimeoutError:
                        if child.poll() is not None or time.monotonic() - begun > PATIENCE_SECS:
                            tail = Path(log.name).read_text()[-1500:]
                            sys.exit(f"bench: the daemon did not start:\n{tail}")
                yield child, time.monotonic() - begun


def processor_secs(pid: int) -> float:
    """Return the processor time (s) that a process has used up to now."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_memory(pid: int) -> int:
    """Return the peak resident memory (bytes) of a process and all its descendants, summed."""
    status = Path(f"/proc/{pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return peak * 1024 + sum(peak_memory(int(child)) for child in children)


def memory(pid: int) -> int:
    """Return the resident memory (bytes) of a process now."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * next(
        int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")
    )


def cpu_seconds(pid: int) -> float:
    """Return the processor time (seconds) that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def save(name: str, results: dict[str, Any]) -> None:
    """Keep the figures of a bench in benches/results/."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nkept in {path.relative_to(HERE.parent)}")
