"""The control socket's file: claims the path, replaces a dead daemon's, refuses a live one's.

It serves nobody; the file appears under its name only once its mode is right and it listens.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tardisd.config.paths import MAX_SOCKET_BYTES
from tardisd.errors import ControlError

MODE = 0o660
BACKLOG = 64


def refuse_live_socket(path: Path) -> None:
    """Return when `path` is free or a stale socket; raise ControlError when it is taken."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ControlError(
            "socket_in_use",
            f"{path} exists and is not a socket; remove it or set [daemon] control_socket",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a live daemon with a full backlog must not hang us
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                return
            if error.errno != errno.EAGAIN:
                raise
    raise ControlError(
        "socket_in_use",
        f"another daemon listens on {path}; stop it with `tardisctl --socket {path} stop`"
        " or set another [daemon] control_socket",
    )


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Hold a listening socket at `path`, mode 0660; raises ControlError or OSError."""
    hidden = path.with_name(f".{os.getpid():x}")
    if max(len(os.fsencode(place)) for place in (path, hidden)) > MAX_SOCKET_BYTES:
        raise ControlError(
            "socket_path_too_long",
            f"the control socket's path is too long for a socket: {path};"
            " set a shorter [daemon] control_socket",
        )
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    refuse_live_socket(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        hidden.unlink(missing_ok=True)
        listener.bind(str(hidden))
        try:
            # Nobody can connect before it listens, and it has its name only after that.
            hidden.chmod(MODE)
            listener.listen(BACKLOG)
            ours = hidden.stat()
            hidden.rename(path)
        except BaseException:
            hidden.unlink(missing_ok=True)
            raise
        try:
            yield listener
        finally:
            _remove(path, ours)


def _remove(path: Path, ours: os.stat_result) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino):  # not a successor's
        path.unlink(missing_ok=True)
