"""One Docker Engine (or what speaks its API) through aiodocker: the few calls made, with bounds and clear errors.

Only calls that Podman's Docker-compatible socket has too. Connections are bounded: one pool for requests, another
for streams (events, pulls, followed logs).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiodocker
import aiohttp
import msgspec

from ..kernel.core.errors import BackendError
from ._docker_logs import Frames

REQUESTS_MAX: Final = 16
"""Connections for requests."""
STREAMS_MAX: Final = 32
"""Connections for streams."""
FOLLOWERS_MAX: Final = 24
"""Streams that are followed logs; others wait for their turn."""
CONNECT_S: Final = 10.0
REQUEST_S: Final = 120.0
"""For one request; creating on a busy disk takes its time."""
PROBE_S: Final = 10.0
"""For a request by which we tell whether the engine is there."""
STREAM_READ_S: Final = 60.0
"""Without a byte for so long, a stream of a kept log or a pull is broken."""
EVENTS: Final = ("start", "die", "died", "oom", "destroy", "remove")
"""Those that are asked for, in Docker's words and, where it differs, Podman's."""
MESSAGE_CHARS_MAX: Final = 200


class EngineError(Exception):
    """The engine has refused. `status`: HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class EngineGone(Exception):
    """The engine cannot be reached, or has stopped answering."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where an engine is: `unix:///path` or `tcp://host:port`; `tls`: a folder with ca.pem, cert.pem and key.pem."""

    url: str
    tls: str | None = None


def short(message: object) -> str:
    """An error's text in one line that fits into a reason."""
    text = " ".join(str(message).split())
    return text if len(text) <= MESSAGE_CHARS_MAX else f"{text[: MESSAGE_CHARS_MAX - 3]}..."


class Engine:
    """A connection to one engine. Open it on the event loop; `close` ends it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._tls = _tls(Path(place.tls)) if place.tls is not None else None
        self._requests: Any = self._client(REQUESTS_MAX)
        self._streams: Any = self._client(STREAMS_MAX)
        self._followers = asyncio.Semaphore(FOLLOWERS_MAX)

    def _client(self, most: int) -> Any:
        url, context = self.place.url, self._tls
        connector: aiohttp.BaseConnector
        if url.startswith("unix://"):
            connector = aiohttp.UnixConnector(url.removeprefix("unix://"), limit=most)
            url = "http://localhost"
        else:
            url = url.replace("tcp://", "http://" if context is None else "https://", 1)
            connector = aiohttp.TCPConnector(ssl=True if context is None else context, limit=most)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
        session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return aiodocker.Docker(url=url, connector=connector, session=session)

    async def close(self) -> None:
        """Close every connection."""
        for client in (self._requests, self._streams):
            await self._close(client)

    @staticmethod
    async def _close(client: Any) -> None:
        await client.close()
        await client.session.close()

    @asynccontextmanager
    async def _bounded(self, seconds: float | None = None) -> AsyncIterator[None]:
        """Bound a request (None: by REQUEST_S), and translate what it can end with."""
        seconds = REQUEST_S if seconds is None else seconds
        try:
            async with asyncio.timeout(seconds):
                yield
        except aiodocker.DockerError as e:
            if e.status == 900:
                raise EngineGone(_why(e)) from e
            raise EngineError(e.status, e.message) from e
        except TimeoutError as e:
            raise EngineGone(f"no answer within {seconds:g} s") from e
        except (aiohttp.ClientError, OSError, json.JSONDecodeError) as e:
            raise EngineGone(short(e) or type(e).__name__) from e

    # -- the engine -------------------------------------------------------------------------------

    async def info(self) -> dict[str, Any]:
        """What the engine says of itself."""
        async with self._bounded(PROBE_S):
            found: dict[str, Any] = await self._requests.system.info()
            return found

    async def probe(self) -> None:
        """Return if it takes new connections, and answers. One that is being stopped still answers on its old ones.

        Raises:
            EngineGone: it does not.
        """
        client = self._client(1)
        try:
            async with self._bounded(PROBE_S):
                await client.version()
        finally:
            await self._close(client)

    # -- containers -------------------------------------------------------------------------------

    async def create(self, name: str, body: Mapping[str, Any]) -> str:
        """Create a container; returns its id."""
        async with self._bounded():
            made = await self._requests.containers.create(body, name=name)
            return str(made.id)

    async def start(self, container: str) -> None:
        """Start it; one that runs is left alone."""
        async with self._bounded():
            await self._requests.containers.container(container).start()

    async def signal(self, container: str, name: str) -> None:
        """Send a signal; one that does not run is left alone."""
        try:
            async with self._bounded():
                await self._requests.containers.container(container).kill(signal=name)
        except EngineError as e:
            if e.status not in (404, 409, 500):  # gone, or not running (Podman says 500)
                raise

    async def inspect(self, container: str) -> dict[str, Any]:
        """All about it."""
        async with self._bounded():
            found: dict[str, Any] = await self._requests.containers.container(container).show()
            return found

    async def remove(self, container: str, volumes: Sequence[str] = ()) -> None:
        """Remove it with its volumes, running or not; one that is gone, or is being removed, is left alone."""
        try:
            async with self._bounded():
                await self._requests.containers.container(container).delete(v=True, force=True)
        except EngineError as e:
            if e.status not in (404, 409):
                raise
        for volume in volumes:
            try:
                async with self._bounded():
                    await (await self._requests.volumes.get(volume)).delete()
            except EngineError as e:
                if e.status not in (404, 409):
                    raise

    async def put(self, container: str, folder: str, archive: bytes) -> None:
        """Unpack an archive in it."""
        async with self._bounded():
            await self._requests.containers.container(container).put_archive(folder, archive)

    async def containers(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Every container with these labels, whatever its state: Id, Labels, State."""
        async with self._bounded():
            filters = json.dumps({"label": list(labels)})
            found = await self._requests.containers.list(all=True, filters=filters)
            return [one._container for one in found]

    # -- images -----------------------------------------------------------------------------------

    async def has_image(self, image: str) -> bool:
        """Whether it is there."""
        try:
            async with self._bounded():
                await self._requests.images.inspect(image)
        except EngineError as e:
            if e.status == 404:
                return False
            raise
        return True

    async def pull(self, image: str, auth: Mapping[str, str] | None) -> AsyncIterator[dict[str, Any]]:
        """Pull it; gives the engine's words on its progress. `auth`: for the image's registry."""
        parameters = {"fromImage": image}
        if "@" not in image and ":" not in image.rpartition("/")[2]:
            parameters["tag"] = "latest"
        headers = {}
        if auth is not None:
            headers["X-Registry-Auth"] = base64.urlsafe_b64encode(msgspec.json.encode(auth)).decode()
        answer = await self._open("POST", "images/create", parameters, STREAM_READ_S, headers)
        async for news in _lines(answer):
            if "error" in news:
                raise EngineError(0, str((news.get("errorDetail") or {}).get("message") or news["error"]))
            yield news

    # -- streams ----------------------------------------------------------------------------------

    async def _open(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str],
        read_s: float | None,
        headers: Mapping[str, str] | None = None,
    ) -> aiohttp.ClientResponse:
        """An answer that is to be read piece by piece; who gets it closes it."""
        client = self._streams
        async with self._bounded():
            if client.api_version == "auto":
                await client.version()
            url = f"{client.docker_host}/{client.api_version}/{path}"
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=read_s)
            answer: aiohttp.ClientResponse = await client.session.request(
                method, url, params=dict(parameters), headers=headers, timeout=timeout
            )
            if answer.status >= 400:
                text = await answer.text()
                with contextlib.suppress(msgspec.MsgspecError, KeyError, TypeError):
                    text = msgspec.json.decode(text)["message"]
                raise EngineError(answer.status, text)
            return answer

    async def events(
        self, labels: Sequence[str], since: float, on_open: Callable[[], None]
    ) -> AsyncIterator[dict[str, Any]]:
        """What happens to the containers with these labels, from `since` (epoch seconds, by the engine's clock) on.

        `on_open` is called when the engine has begun to answer: it tells of whatever happens from now on.
        """
        filters = {"type": ["container"], "event": EVENTS, "label": list(labels)}
        parameters = {"filters": json.dumps(filters), "since": f"{since:.9f}"}
        answer = await self._open("GET", "events", parameters, None)
        on_open()
        async for news in _lines(answer):
            yield news
        raise EngineGone("the engine has closed the stream of events")

    async def logs(self, container: str, *, follow: bool) -> AsyncIterator[bytes]:
        """What it has written so far; with `follow`, until it ends."""
        parameters = {"stdout": "1", "stderr": "1", "follow": "1" if follow else "0"}
        if not follow:
            async for piece in self._logs(container, parameters, STREAM_READ_S):
                yield piece
            return
        async with self._followers:
            async for piece in self._logs(container, parameters, None):
                yield piece

    async def _logs(self, container: str, parameters: dict[str, str], read_s: float | None) -> AsyncIterator[bytes]:
        answer = await self._open("GET", f"containers/{container}/logs", parameters, read_s)
        frames = Frames()
        try:
            async for data in answer.content.iter_any():
                if piece := frames.feed(data):
                    yield piece
        except (aiohttp.ClientError, TimeoutError, OSError) as e:
            raise EngineGone(short(e) or type(e).__name__) from e
        finally:
            answer.close()


async def _lines(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The lines of an answer, each a JSON object; it is closed at the end."""
    try:
        while line := await answer.content.readline():
            if line.strip():
                yield json.loads(line)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as e:
        raise EngineGone(short(e) or type(e).__name__) from e
    finally:
        answer.close()


def _why(error: aiodocker.DockerError) -> str:
    """Why there is no connection, in the system's words."""
    cause = getattr(error.__context__, "os_error", None) or error.__context__ or error
    return short(getattr(cause, "strerror", None) or cause)


def _tls(folder: Path) -> ssl.SSLContext:
    """As Docker's clients have it: the server's certificate is checked, and ours is shown."""
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=folder / "ca.pem")
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    except (OSError, ssl.SSLError) as e:
        raise BackendError(f"tls: {folder} has no ca.pem, cert.pem and key.pem that can be used: {e}") from e
    return context
