"""Files of one SSH host: logs, working directories that are sent and fetched, and what is forgotten.

They go over channels of the host's one connection that are opened on demand, and closed when nobody has wanted them for
CHANNEL_IDLE_S: one of our own program's for logs and names, one of SFTP for working directories.

A job whose working directory is one of the kernel's machine is launched on a host once that has been sent there; what
the host has of it is noted there with sizes and times, so that later only what has changed is fetched. The end of such
an attempt is reported when its files are here, and acknowledged after that: a lost connection makes it be reported
again.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
import asyncssh
import asyncssh.sftp
import msgspec

from ..kernel.backend import AttemptKey, AttemptSpec, Launch, log_path
from ..kernel.core.model import TEXT_NOT_STARTED
from ..kernel.logs import Log
from ._ssh_channel import Far, FarError
from ._ssh_connect import HostError

if TYPE_CHECKING:
    from ._ssh_host import SshHost

CHANNEL_IDLE_S: Final = 30.0
LOG_PIECE: Final = 256 << 10
FOLLOW_S: Final = 0.25
"""Between looks at a log that is followed."""
FORGET_MAX: Final = 1000
"""Jobs in one request."""
COPIES_MAX: Final = 16
"""Files that are copied at once."""
WIND_UP_S: Final = 5.0
"""For what is under way to see that the connection has ended."""
ASK_S: Final = 60.0
"""For one answer."""
REASON_MAX: Final = 255

Tell = Callable[[str | None], None]
Lost = (OSError, HostError, asyncssh.ConnectionLost, asyncssh.ChannelOpenError)

log = Log("anybatch.backends")


class HostFiles:
    """What of one host's files is under way."""

    def __init__(self, host: SshHost) -> None:
        self._host = host
        self._far: Far | None = None
        self._sftp: asyncssh.SFTPClient | None = None
        self._opening = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None
        self._busy = 0
        self._state: str | None = None
        self._found: list[str] = []  # jobs of which something is on the host
        self._local: dict[str, Path] = {}  # jobs whose working directory is one of this machine
        self._specs: dict[str, tuple[AttemptSpec, AttemptSpec]] = {}
        self._sent: set[str] = set()
        self._waiting: dict[str, list[Launch]] = {}  # until their job's files are on the host
        self._ended: dict[str, list[Tell]] = {}  # ends that are told once their files are here
        self._told: list[Callable[[], None]] = []
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._reads = 0

    # -- the connection ----------------------------------------------------------------------------------

    def connected(self, state: str, jobs: Sequence[str]) -> None:
        """There is a connection, and the host's folder is this; nothing is settled yet."""
        self._state, self._found = state, list(jobs)

    def begin(self) -> None:
        """The host is settled: go on with what has waited, and remove what belongs to jobs that are no more."""
        for job_id in self._waiting:
            self._start("send", job_id, self._send)
        gone = [
            job_id for job_id in self._found if not self._host.reports.is_kept(job_id) and not self._is_held(job_id)
        ]
        self._found = []
        if gone:
            self._tasks["forget", ""] = asyncio.get_running_loop().create_task(self._forget_quietly(gone))

    def _is_held(self, job_id: str) -> bool:
        return any(held == job_id for held, _, _ in self._host.client.held)

    def disconnected(self) -> None:
        """The connection has ended: what is under way begins again with the next one; ends are reported again."""
        self._far = self._sftp = None
        self._state = None
        self._sent.clear()
        self._ended.clear()
        self._told.clear()

    async def wind_up(self) -> None:
        """Once the connection has ended: return when nothing of it goes on.

        Copies fail with it. They are cancelled only if they do not: asyncssh leaves a cancelled copy's requests alone,
        and what becomes of those is seen by nobody.
        """
        tasks = list(self._tasks.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=WIND_UP_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    def give_up(self) -> None:
        """Nothing that waits will run here."""
        self._waiting.clear()

    def close(self) -> None:
        """Nothing is wanted any more; the connection has ended."""
        if self._idle is not None:
            self._idle.cancel()

    def _start(self, what: str, job_id: str, run: Callable[[str], Any]) -> None:
        key = (what, job_id)
        if self._state is not None and key not in self._tasks:
            task = self._tasks[key] = asyncio.get_running_loop().create_task(run(job_id))
            task.add_done_callback(lambda _: self._tasks.pop(key, None))

    async def ask(self, asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """An answer of our program's on the host.

        Raises:
            HostError: the host cannot be reached now (FarError: it says no).
        """
        with anyio.fail_after(ASK_S):
            async with self._opening:
                far = self._far
                if far is None or far.is_closed:
                    far = self._far = await self._open("files")
        self._busy += 1
        try:
            with anyio.fail_after(ASK_S):
                return await far.ask(asked)
        except FarError:
            raise
        except BaseException:  # an answer may still come: nobody else must take it for theirs
            far.close()
            if self._far is far:
                self._far = None
            raise
        finally:
            self._rest()

    async def _open(self, op: str) -> Far:
        host = self._host
        connection = host.connection
        if connection is None or self._state is None:
            raise HostError(f"host {host.name!r} cannot be reached now")
        far = await Far.open(connection, host.options.path, host.spec.python)
        await far.ask({"op": op, "folder": host.options.folder, "place": host.place.parts})
        return far

    def _rest(self) -> None:
        self._busy -= 1
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(CHANNEL_IDLE_S, self._close_idle)

    def _close_idle(self) -> None:
        self._idle = None
        if not self._busy:
            if self._far is not None:
                self._far.close()
            if self._sftp is not None:
                self._sftp.exit()
            self._far = self._sftp = None

    # -- logs and forgetting -----------------------------------------------------------------------------

    async def read_log(self, attempt: AttemptKey, *, follow: bool) -> AsyncIterator[bytes]:
        """What the attempt has written, as it stands on the host; with `follow` until it has ended."""
        self._reads += 1
        asked = {"op": "read", "path": str(log_path(Path("logs"), attempt)), "file": self._reads, "most": LOG_PIECE}
        at = 0
        try:
            while True:
                going_on = follow and self._host.holds(attempt)  # before reading: what it wrote until its end is read
                while True:
                    found, data = await self.ask({**asked, "at": at})
                    if not data:
                        break
                    at = int(found["at"])
                    yield data
                if not going_on:
                    return
                await anyio.sleep(FOLLOW_S)
        finally:
            if self._far is not None and not self._far.is_closed:
                with anyio.move_on_after(1, shield=True):
                    try:
                        await self.ask({"op": "done", "file": asked["file"]})
                    except Lost:
                        pass  # it is closed with the channel

    async def forget(self, job_ids: Sequence[str]) -> None:
        """Remove what the host has of these jobs."""
        for job_id in job_ids:
            self._local.pop(job_id, None)
            self._specs.pop(job_id, None)
            self._sent.discard(job_id)
        if self._state is None:
            return  # the next connection finds them
        for start in range(0, len(job_ids), FORGET_MAX):
            await self.ask({"op": "forget", "jobs": list(job_ids[start : start + FORGET_MAX])})

    async def _forget_quietly(self, job_ids: Sequence[str]) -> None:
        try:
            await self.forget(job_ids)
        except Lost as error:
            log.warning("jobs_not_forgotten", host=self._host.name, jobs=len(job_ids), error=str(error))
        finally:
            self._tasks.pop(("forget", ""), None)

    # -- working directories: sending --------------------------------------------------------------------

    def take_over(self, known: Sequence[Launch]) -> None:
        """What was in flight when the last kernel ended: what was started is settled, the rest may need its files."""
        for launch in known:
            if self._needs(launch) and not launch.known_started:
                self._waiting.setdefault(launch.job_id, []).append(launch)
            else:
                self._host.client.settle_later([launch])

    def _needs(self, launch: Launch) -> bool:
        if self._host.options.workdirs == "there" or launch.spec.workdir is None:
            return False
        self._local[launch.job_id] = Path(launch.spec.workdir)
        return True

    def first(self, launches: Sequence[Launch]) -> list[Launch]:
        """Those of these that can be launched now; the others are once their files are on the host."""
        if self._host.options.workdirs == "there":
            return list(launches)
        ready = []
        for launch in launches:
            if not self._needs(launch):
                ready.append(launch)
            elif launch.job_id in self._sent:
                ready.append(self._there(launch))
            else:
                self._waiting.setdefault(launch.job_id, []).append(launch)
                self._start("send", launch.job_id, self._send)
        return ready

    def _there(self, launch: Launch) -> Launch:
        """A launch in the job's folder on the host, where its files are."""
        known = self._specs.get(launch.job_id)
        if known is None or known[0] is not launch.spec:
            known = self._specs[launch.job_id] = (launch.spec, msgspec.structs.replace(launch.spec, workdir=None))
        return msgspec.structs.replace(launch, spec=known[1])

    def held(self) -> list[tuple[str, int, list[int]]]:
        """Attempts that wait for their files: job id, attempt number, indexes."""
        return [(one.job_id, one.number, list(one.indexes)) for some in self._waiting.values() for one in some]

    def holds(self, key: AttemptKey) -> bool:
        """Whether this attempt waits for its files."""
        some = self._waiting.get(key.job_id, ())
        return any(one.number == key.number and key.index in one.indexes for one in some)

    def stop(self, keys: Iterable[AttemptKey]) -> list[AttemptKey]:
        """End those of these attempts that wait for their files; returns the others."""
        rest = []
        for key in keys:
            if not self.holds(key):
                rest.append(key)
                continue
            some = [
                msgspec.structs.replace(one, indexes=[i for i in one.indexes if i != key.index])
                if one.number == key.number
                else one
                for one in self._waiting[key.job_id]
            ]
            self._waiting[key.job_id] = [one for one in some if one.indexes]
            if not self._waiting[key.job_id]:
                del self._waiting[key.job_id]
            self._host.reports.context.exited(key.job_id, key.number, [key.index], [None])
        return rest

    async def _send(self, job_id: str) -> None:
        """Send a job's files unless they are there, then launch what has waited."""
        try:
            found, _ = await self.ask({"op": "mark", "job": job_id, "ask": True})
            if not found["marked"]:
                folder, _ = await self.ask({"op": "folder", "job": job_id, "empty": True})
                await self._put(self._local[job_id], str(folder["path"]))
                await self.ask({"op": "mark", "job": job_id, "ask": False})
        except (FarError, asyncssh.SFTPError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
            if isinstance(error, (asyncssh.SFTPNoConnection, asyncssh.SFTPConnectionLost)):
                return
            self._refuse(job_id, f"CannotStartContainerError: its files could not be sent: {_text(error)}")
            return
        except Lost as error:
            log.warning("files_not_sent", host=self._host.name, job=job_id, error=str(error))
            return  # the next connection begins again
        self._sent.add(job_id)
        self._host.client.post_launch([self._there(one) for one in self._waiting.pop(job_id, ())])

    def _refuse(self, job_id: str, reason: str) -> None:
        for one in self._waiting.pop(job_id, ()):
            self._host.reports.exited(
                job_id, one.number, one.indexes, [None] * len(one.indexes), reason=reason[:REASON_MAX],
                status_reason=TEXT_NOT_STARTED,
            )  # fmt: skip

    async def _put(self, local: Path, remote: str) -> None:
        """Copy what is below a folder: plain files with their modes and times, folders, and links as they are."""
        folders, files, links = await anyio.to_thread.run_sync(_below, local)
        if not folders and not files and not links:
            return
        sftp = await self._sftp_client()

        async def put(name: str) -> None:
            await sftp.put(str(local / name), f"{remote}/{name}", preserve=True)

        self._busy += 1
        try:
            for name in folders:
                await sftp.mkdir(f"{remote}/{name}")
            await _all(put, files)
            for name in links:
                await sftp.symlink(os.readlink(local / name), f"{remote}/{name}")
        finally:
            self._rest()

    # -- working directories: fetching -------------------------------------------------------------------

    def after(self, job_id: str, tell: Tell) -> None:
        """Tell of an end: now, or once the files of its job are here."""
        if self._host.options.workdirs != "send and fetch" or job_id not in self._local or self._state is None:
            tell(None)
            return
        self._ended.setdefault(job_id, []).append(tell)
        self._start("fetch", job_id, self._fetch)

    def when_told(self, callback: Callable[[], None]) -> None:
        """Call back once every end has been told that was reported up to now."""
        if self._ended:
            self._told.append(callback)
        else:
            callback()

    async def _fetch(self, job_id: str) -> None:
        """Fetch what has changed, tell of the ends; again as long as there are more."""
        while self._ended.get(job_id):
            ends = len(self._ended[job_id])
            failed = None
            try:
                changed, _ = await self.ask({"op": "changed", "job": job_id})
                await self._get(self._local[job_id], str(changed["path"]), changed["files"], changed["folders"])
                await self.ask({"op": "fetched", "job": job_id})
            except (FarError, asyncssh.SFTPError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
                if isinstance(error, (asyncssh.SFTPNoConnection, asyncssh.SFTPConnectionLost)):
                    return
                failed = f"its files could not be fetched: {_text(error)}"[:REASON_MAX]
            except Lost as error:
                if isinstance(error, OSError) and error.errno is not None and self._host.connection is not None:
                    failed = f"its files could not be fetched: {_text(error)}"[:REASON_MAX]  # this machine's disk
                else:
                    return  # the next connection reports them again
            waiting = self._ended.get(job_id)
            if waiting is None:
                return  # the connection has ended meanwhile: all are reported again
            told, self._ended[job_id] = waiting[:ends], waiting[ends:]
            for tell in told:
                tell(failed)
        self._ended.pop(job_id, None)
        if not self._ended:
            callbacks, self._told = self._told, []
            for callback in callbacks:
                callback()

    async def _get(self, local: Path, remote: str, files: Sequence[Sequence[Any]], folders: Sequence[str]) -> None:
        if not files and not folders:
            return
        for name in [*folders, *(one[0] for one in files)]:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise FarError(f"the host names a file {name!r}")
        for name in folders:
            (local / name).mkdir(parents=True, exist_ok=True)
        if not files:
            return
        sftp = await self._sftp_client()

        async def get(name: str) -> None:
            there = local / name
            there.parent.mkdir(parents=True, exist_ok=True)
            fresh = there.with_name(f".{there.name[:200]}.anybatch-{os.getpid()}")
            try:
                await sftp.get(f"{remote}/{name}", str(fresh), preserve=True)
                fresh.replace(there)
            except asyncssh.SFTPNoSuchFile:
                pass  # it was there a moment ago
            finally:
                fresh.unlink(missing_ok=True)

        self._busy += 1
        try:
            await _all(get, [str(one[0]) for one in files])
        finally:
            self._rest()

    async def _sftp_client(self) -> asyncssh.SFTPClient:
        """SFTP over a channel on which no login shell can put a word in."""
        async with self._opening:
            if self._sftp is None:
                connection = self._host.connection
                if connection is None:
                    raise HostError(f"host {self._host.name!r} cannot be reached now")
                try:
                    self._sftp = await start_sftp(connection, self._host.options.path, self._host.spec.python)
                except FarError:  # no sftp-server where we look: sshd may have one of its own
                    self._sftp = await connection.start_sftp_client()
            return self._sftp


async def start_sftp(connection: asyncssh.SSHClientConnection, path: str, python: str | None) -> asyncssh.SFTPClient:
    """SFTP with a server that our own program becomes."""
    far = await Far.open(connection, path, python)
    await far.ask({"op": "sftp"})
    reader, writer = far.streams()
    start = asyncssh.sftp.start_sftp_client
    given: dict[str, Any] = {"path_encoding": "utf-8", "path_errors": "surrogateescape", "sftp_version": 3}
    if "utf8_decode_errors" in inspect.signature(start).parameters:
        given["utf8_decode_errors"] = "surrogateescape"
    return await start(conn=connection, loop=asyncio.get_running_loop(), reader=reader, writer=writer, **given)


async def _all(copy: Callable[[str], Coroutine[Any, Any, None]], names: Iterable[str]) -> None:
    """Copy all, some at once. Once one has failed no more are begun, and those under way are waited for."""
    limit, failures = asyncio.Semaphore(COPIES_MAX), list[Exception]()

    async def one(name: str) -> None:
        async with limit:
            if not failures:
                try:
                    await copy(name)
                except Exception as error:
                    failures.append(error)

    await asyncio.gather(*map(one, names))
    if failures:
        raise failures[0]


def _below(top: Path) -> tuple[list[str], list[str], list[str]]:
    """Folders (those above first), plain files and links below a folder, by their names from there."""
    folders: list[str] = []
    files: list[str] = []
    links: list[str] = []

    def fail(error: OSError) -> None:
        raise error

    for path, names, others in os.walk(top, onerror=fail):
        base = Path(path).relative_to(top)
        for name in (*names, *others):
            full, there = str(base / name), Path(path) / name
            if there.is_symlink():
                links.append(full)
            elif there.is_dir():
                folders.append(full)
            elif there.is_file():
                files.append(full)
    return folders, files, links


def _text(error: Exception) -> str:
    text = getattr(error, "reason", None) or str(error) or type(error).__name__
    return f"{text} (is its disk full?)" if text == "Failure" else str(text)
