"""What the tests of the storage `postgres` share: schemas of their own, and private servers."""

from __future__ import annotations

import os
import secrets
import select
import shutil
import socket
import subprocess
import tempfile
import threading
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psycopg
import services
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tardisd.plugins.secret import Secret
from tardisd.testing.exchange import suite_context
from tardisd_postgres.plugin import PostgresOptions, PostgresStorage
from tardisd_postgres.rows import TABLES


@contextmanager
def own_schema():
    """Name a schema that nobody else uses; it is gone afterwards."""
    dsn, name = services.postgres_dsn(), f"tardisd_test_{secrets.token_hex(6)}"
    try:
        yield name
    finally:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("SET client_min_messages TO warning")
            connection.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")


def plugin_of(schema, folder, dsn=None, **options):
    """Return an instance that keeps its tables in the schema."""
    options.setdefault("pool_min", 2)
    if dsn is None:  # a server that is not killed: without waiting for the disk at each commit
        dsn = make_conninfo(services.postgres_dsn(), options="-c synchronous_commit=off")
    chosen = PostgresOptions(dsn=Secret(dsn), schema=schema, **options)
    # Named after the schema, so that the server tells its connections from everybody else's.
    return PostgresStorage(chosen, suite_context(schema, folder))


@asynccontextmanager
async def opened(schema, folder, dsn=None, **options):
    """Run an instance."""
    plugin = plugin_of(schema, folder, dsn, **options)
    async with plugin.run():
        yield plugin


@contextmanager
def sql(schema, dsn=None):
    """Connect beside the plugin, to look at its tables or to disturb it."""
    with psycopg.connect(dsn or services.postgres_dsn(), autocommit=True) as connection:
        connection.execute(f"SET search_path TO {schema}".encode())
        yield connection


def empty(schema):
    """Remove all that is stored, and leave the tables."""
    with sql(schema) as connection, connection.transaction():
        connection.execute("SET LOCAL synchronous_commit TO off")
        for table in TABLES.values():
            connection.execute(f"DELETE FROM {table.name}; DELETE FROM {table.dead}")
        for name in ("coverage", "gap", "provenance", "instrument", "lease", "series"):
            connection.execute(f"DELETE FROM {name}")


class Server:
    """A PostgreSQL of one's own, which may be killed."""

    def __init__(self, folder, binaries):
        self.folder, self._binaries = folder, binaries
        self.choose_port()

    def choose_port(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.dsn = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def run(self, program, *words):
        """Run one of PostgreSQL's programs, which refuse to be run by root."""
        command = [self._binaries / program, *words]
        if os.geteuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        subprocess.run(command, check=True, cwd=self.folder, capture_output=True)

    def start(self):
        settings = f"-p {self.port} -c listen_addresses=127.0.0.1"
        settings += f" -c unix_socket_directories={self.folder} -c fsync=off"
        log = self.folder / "log"
        self.run(
            "pg_ctl", "-s", "-w", "-D", self.folder / "data", "-l", log, "-o", settings, "start"
        )

    def stop(self, mode="immediate"):
        """Stop it; `immediate` is a crash as far as clients and data are concerned."""
        self.run("pg_ctl", "-s", "-w", "-D", self.folder / "data", "-m", mode, "stop")

    def kill(self):
        """End it as a crash does."""
        self.stop()

    @property
    def runs(self):
        return (self.folder / "data" / "postmaster.pid").exists()


@contextmanager
def own_server():
    """Run a PostgreSQL of one's own in a temporary folder."""
    services.postgres_dsn()  # where that is missing, this is not wanted either
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [shutil.which("initdb")]
    if found[-1] is None:
        services.missing("PostgreSQL's program initdb")
    # Not below pytest's own folder, into which only its owner may look.
    folder = Path(tempfile.mkdtemp(prefix="tardisd-pg-"))
    server = Server(folder, Path(found[-1]).parent)
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        server.run("initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-N")
        try:
            server.start()
        except subprocess.CalledProcessError:  # somebody else has taken the port
            server.choose_port()
            server.start()
        yield server
    finally:
        if server.runs:
            server.stop()
        shutil.rmtree(folder)


def terminate(connection, schema):
    """End the plugin's connections, as an administrator or a restarted server would."""
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
        (f"tardisd {schema}",),
    )


def used(connection, schema):
    """Return how many connections the plugin has."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
    return connection.execute(query, (f"tardisd {schema}",)).fetchone()[0]


def held(connection, schema):
    """Return how many locks the plugin has on series, or by transactions that it left open."""
    query = (
        "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
        " WHERE a.application_name = %s AND (l.locktype = 'advisory' OR a.state LIKE 'idle in%%')"
    )
    return connection.execute(query, (f"tardisd {schema}",)).fetchone()[0]


class Proxy:
    """A way to the server that cuts the connection of the `cut`th COMMIT that passes.

    `after`: when the server has answered, whose answer is lost; else before it hears of it.
    """

    def __init__(self, dsn, *, after, cut=1):
        found = conninfo_to_dict(dsn)
        self._target = (found["host"], int(found["port"]))
        self._after, self._cut = after, cut
        self.commits = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.dsn = make_conninfo(dsn, host="127.0.0.1", port=port, sslmode="disable",
                                 gssencmode="disable")  # fmt: skip
        self._threads = []

    @contextmanager
    def running(self):
        accepting = threading.Thread(target=self._accept)
        accepting.start()
        try:
            yield self
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            for thread in [accepting, *self._threads]:
                thread.join()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client):
        with client, socket.create_connection(self._target) as server:
            doomed = False
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(65536)
                    if not data or (doomed and source is server):
                        return
                    if source is client and b"COMMIT\0" in data:
                        self.commits += 1
                        doomed = self.commits == self._cut
                        if doomed and not self._after:
                            return
                    (server if source is client else client).sendall(data)
