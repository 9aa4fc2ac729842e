"""The file sink: its options, its lifetime, and one writer per session; the files are elsewhere."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal
from weakref import WeakKeyDictionary

import trio
from msgspec import Meta

from tardisd.errors import NotConnected, PluginError, RequestError, Retry
from tardisd.log import Log
from tardisd.plugins.base import Context, Options
from tardisd.plugins.sessions import Block, Evicted, Notice, Resume, Session, Subscription
from tardisd.plugins.sink import Sink, Writer
from tardisd.supervise import attempt

from .done import Done
from .output import OutputFile, remove_leftovers
from .parts import PackedPart, Packing, ParquetPart, Part, TextPart
from .pieces import Cutter
from .stream import FileStream, Handles
from .template import PathTemplate

WRITING_THREADS = 4
COMPLETE_SECS = 10.0
RETRY_SECS = 1.0
SUFFIXES: dict[str, str] = {"gzip": ".gz", "zstd": ".zst"}
_ENDED = frozenset({"finished", "stopped", "failed"})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_HINTS = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or raise the quota",
    errno.EACCES: "let the user that tardisd runs as write there",
    errno.EPERM: "let the user that tardisd runs as write there",
    errno.EROFS: "choose a folder that can be written to",
    errno.EEXIST: "a file stands where path needs a folder",
    errno.ENOTDIR: "a file stands where path needs a folder",
    errno.ENAMETOOLONG: "shorten path",
    errno.EMFILE: "lower max_open_files, or raise the limit of open files",
}

log = Log("tardisd.file")


class FileOptions(Options, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of the file sink."""

    path: Annotated[
        str,
        Meta(
            description="where files go; relative to data_dir; with any of {session_id}, {epoch},"
            " {exchange}, {symbol}, {data_type}, {date}"
        ),
    ]
    format: Annotated[
        Literal["ndjson", "csv", "parquet"],
        Meta(description="ndjson; or csv or parquet, which need {symbol} and {data_type} in path"),
    ] = "ndjson"
    compression: Annotated[
        Literal["none", "gzip", "zstd", "snappy", "lz4"] | None,
        Meta(
            description="gzip or zstd; of parquet also snappy, lz4 or none."
            " Parquet is compressed with zstd by default, text is not"
        ),
    ] = None
    rotate_bytes: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="largest size of one file; no limit by default"),
    ] = None
    rotate: Annotated[
        Literal["day"] | None,
        Meta(description="day: new files when a day (UTC) of market time begins"),
    ] = None
    max_open_files: Annotated[int, Meta(ge=1, description="files held open at once")] = 256

    def __post_init__(self) -> None:
        template = PathTemplate(self.path)
        missing = [name for name in ("symbol", "data_type") if name not in template.fields]
        if self.format != "ndjson" and missing:
            raise ValueError(
                f"a {self.format} file holds one series, so its path needs {{symbol}} and"
                f" {{data_type}}; path {self.path!r} lacks"
                f" {' and '.join(f'{{{name}}}' for name in missing)}"
            )
        if self.format != "parquet" and self.compression in {"snappy", "lz4"}:
            raise ValueError(
                f"compression {self.compression!r} is for parquet; {self.format} takes 'gzip' or"
                " 'zstd'"
            )
        for packing, suffix in SUFFIXES.items():
            if self.path.endswith(suffix) and (
                self.format == "parquet" or self.compression != packing
            ):
                raise ValueError(
                    f"path {self.path!r} ends in {suffix}, but the files are not {packing};"
                    + (
                        " parquet is compressed inside, end it with .parquet"
                        if self.format == "parquet"
                        else f" set compression = {packing!r}, or leave {suffix} out"
                    )
                )

    @property
    def packing(self) -> Packing | None:
        """How lines are compressed, if they are."""
        if self.format != "parquet" and self.compression in SUFFIXES:
            return self.compression  # type: ignore[return-value]
        return None

    @property
    def suffix(self) -> str:
        """What is added to every name."""
        suffix = "" if self.packing is None else SUFFIXES[self.packing]
        return "" if self.path.endswith(suffix) else suffix


class FileSink(Sink[FileOptions]):
    """Writes each session into files of its own, which get their names when they are complete."""

    name: ClassVar[str] = "file"
    Options: ClassVar[type[FileOptions]] = FileOptions

    def __init__(self, options: FileOptions, context: Context) -> None:
        super().__init__(options, context)
        self.forms = () if options.format == "parquet" else (options.format,)
        self._template = PathTemplate(options.path)
        self._root = self._template.root(context.data_dir)
        self._handles = Handles(options.max_open_files)
        self._threads = trio.CapacityLimiter(WRITING_THREADS)
        self._streams: WeakKeyDictionary[Session, FileStream] = WeakKeyDictionary()
        self._unfinished: set[FileStream] = set()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Remove what a crash left behind; at the end try once more what could not be completed."""
        for path in await trio.to_thread.run_sync(self._clean):
            log.warning("leftover removed", instance=self.context.name, path=str(path))
        try:
            yield
        finally:
            for stream in list(self._unfinished):
                try:
                    await self._complete(stream)
                except OSError as error:
                    log.error("file left unfinished", reason=str(error))

    async def probe(self) -> None:
        """Return when the folder takes files; raise PluginError when it does not."""
        try:
            await trio.to_thread.run_sync(self._try_out)
        except OSError as error:
            raise PluginError(_what_failed(error)) from None

    @asynccontextmanager
    async def open(self, session: Session) -> AsyncIterator[Writer]:
        """Open the session's files; leaving it gives them their names."""
        stream = self._streams.get(session)
        if stream is None:
            with _as_plugin_errors():
                stream = self._streams[session] = self._stream(session)
        self._unfinished.add(stream)
        writer = FileWriter(stream, self._threads, session, self.forms)
        try:
            yield writer
        except BaseException:
            try:
                await self._complete(stream)
            except OSError as error:  # tried again when the session is opened next, or at the end
                log.warning("file not completed", reason=str(error))
            raise
        else:
            with _as_plugin_errors():
                await self._complete(stream)
        finally:
            writer.close()
            if not stream.unfinished:
                self._unfinished.discard(stream)
                if stream.done is not None and session.status()["status"] in _ENDED:
                    stream.done.forget()

    def _book(self, session: Session) -> Done | None:
        """Return where it is noted which files of a durable session are complete, if it can be."""
        status = session.status()
        if not status.get("durable"):
            return None
        folder = self.context.data_dir / f"{self.context.name}-done"
        done = Done(folder, session.session_id, status["created_at"], self._root)
        if not done.resumed:
            if status["seq"]:  # it was begun by a daemon that kept no book
                return None
            done.begin()
        return done

    def _stream(self, session: Session) -> FileStream:
        options, session_id = self.options, session.session_id
        cutter = Cutter(
            self._template, options.format, options.rotate == "day", session_id, options.suffix
        )

        def make_part(file: OutputFile, epoch: int) -> Part:
            if options.format == "parquet":
                about = {"session_id": session_id, "epoch": str(epoch)}
                return ParquetPart(file, options.rotate_bytes, options.compression or "zstd", about)
            if options.packing is None:
                return TextPart(file, options.rotate_bytes)
            return PackedPart(file, options.rotate_bytes, options.packing)

        return FileStream(
            self._root, cutter, self.context.name, self._handles, make_part, self._book(session)
        )

    async def _complete(self, stream: FileStream) -> None:
        """Complete the stream's files, whatever is cancelled; OSError when that is stuck."""
        with trio.CancelScope(shield=True) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_give_up_when_stuck, stream, scope)
                error = await attempt(
                    partial(
                        trio.to_thread.run_sync,
                        stream.complete,
                        limiter=self._threads,
                        abandon_on_cancel=True,
                    )
                )
                nursery.cancel_scope.cancel()
        if scope.cancelled_caught:
            raise OSError(errno.ETIMEDOUT, f"no file was completed within {COMPLETE_SECS:g} s")
        if error is not None:
            raise error

    def _clean(self) -> list[Path]:
        pattern = self._template.folders_pattern()
        folders = self._root.glob(pattern) if pattern else iter([self._root])
        try:
            return remove_leftovers(folders, self.context.name)
        except OSError as error:
            log.warning("leftovers not removed", reason=str(error))
            return []

    def _try_out(self) -> None:
        trial = OutputFile(self._root / "probe", self.context.name)
        try:
            trial.append(b"\n")
        finally:
            trial.discard()


class FileWriter(Writer):
    """Writes a session's blocks; a block is delivered when all its rows are in the files."""

    def __init__(
        self,
        stream: FileStream,
        threads: trio.CapacityLimiter,
        session: Session,
        forms: Sequence[str],
    ) -> None:
        self._stream = stream
        self._threads = threads
        self._session = session
        self._forms = forms
        #: Whether rows may be missing that a daemon before this one had not completed the files of.
        self._lacks = stream.done is not None and stream.done.resumed and not stream.caught_up
        self._missed: Subscription | None = None
        self._item: Block | Notice | None = None

    def close(self) -> None:
        """Ask for nothing more of what is missing."""
        if self._missed is not None:
            self._missed.close()

    async def write(self, block: Block, /) -> None:
        """Append the block. Raises Retry when the disk is full, NotConnected for other trouble."""
        if self._lacks:
            await self._fill(block.epoch, block.first_seq - 1)
        await self._append(block)

    async def _append(self, block: Block) -> None:
        with _as_plugin_errors():
            await trio.to_thread.run_sync(self._stream.write, block, limiter=self._threads)

    async def _fill(self, epoch: int, upto: int) -> None:
        """Append what files had that were not complete when the daemon was killed.

        What was received and could not be written is kept, so that it is tried again as it was.
        """
        stream = self._stream
        while (seq := stream.taken[1] if stream.taken[0] == epoch else 0) < upto:
            try:
                if self._missed is None:
                    facts = {"session": self._session.session_id, "after": seq, "upto": upto}
                    log.info("file sink catches up", **facts)
                    resume = Resume(epoch, seq)
                    self._missed = self._session.subscribe("block", self._forms, "file", resume)
                if self._item is None:
                    self._item = await self._missed.receive()
            except (RequestError, Evicted, trio.EndOfChannel) as error:
                log.warning("rows lost", session=self._session.session_id, after=seq, upto=upto,
                            reason=str(error))  # fmt: skip
                break
            item = self._item
            if isinstance(item, Notice):
                if item.type == "reset":  # nobody needs the rest
                    break
                if item.type == "gap":
                    stream.taken = (epoch, item.fields["seq"])
            else:
                await self._append(item)
            self._item = None
        self.close()
        self._missed = self._item = None
        self._lacks, stream.caught_up = False, True

    async def notice(self, notice: Notice, /) -> None:
        """Complete the files of an epoch when it is over: what comes now has numbers from 1 on."""
        if notice.type == "end" and self._lacks:
            status = self._session.status()
            await self._fill(status["epoch"], status["seq"])
        if notice.type == "reset":
            with _as_plugin_errors():
                await trio.to_thread.run_sync(self._stream.complete, limiter=self._threads)


async def _give_up_when_stuck(stream: FileStream, scope: trio.CancelScope) -> None:
    """Cancel the scope when no file of the stream was completed for a while."""
    completed = -1
    while completed != stream.completed:
        completed = stream.completed
        await trio.sleep(COMPLETE_SECS)
    scope.cancel()


@contextmanager
def _as_plugin_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise Retry(_what_failed(error), after=RETRY_SECS) from None
        raise NotConnected(_what_failed(error)) from None


def _what_failed(error: OSError) -> str:
    text = (error.strerror or str(error)).lower()
    hint = _HINTS.get(error.errno or 0, "see to the folder and its file system")
    place = "" if error.filename is None else f"{os.fspath(error.filename)}: "
    return f"{place}{text}; {hint}"
