"""Images: pulled once however many attempts need them, with progress, and the registry's credentials."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from ._docker_engine import Engine, EngineError, short

PullPolicy = Literal["missing", "always", "never"]
HUB: Final = "https://index.docker.io/v1/"
"""Under which Docker's configuration keeps the credentials of Docker Hub."""
HELPER_S: Final = 30.0
"""For a credential helper to answer."""
TELL_EVERY_S: Final = 0.5
MB: Final = 1_000_000


class PullFailed(Exception):
    """An image cannot be had; the text begins as ECS's does."""


class Images:
    """The images of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.policy: PullPolicy = "missing"
        self._ready: set[str] = set()

    def token(self, image: str, job_id: str) -> str:
        """What is made ready at once: an image, or (pulled `always`) an image for one job."""
        return f"{image} {job_id}" if self.policy == "always" else image

    def is_ready(self, token: str) -> bool:
        """Whether an attempt may be created now."""
        return token in self._ready

    def forget(self, token: str) -> None:
        """It was there and is no longer: somebody has removed it."""
        self._ready.discard(token)

    def forget_all(self) -> None:
        """The engine was away: look again."""
        self._ready.clear()

    async def make_ready(self, token: str, tell: Callable[[str], None]) -> None:
        """Pull it if the policy says so. `tell` is given the progress now and then.

        Raises:
            PullFailed: it cannot be had.
            EngineGone: the engine cannot be reached.
        """
        image = token.partition(" ")[0]
        try:
            there = self.policy != "always" and await self._engine.has_image(image)
            if not there:
                if self.policy == "never":
                    text = f"image {image} is not on the engine, and the environment's pull policy is never"
                    raise PullFailed(f"CannotPullContainerError: {text}")
                await self._pull(image, tell)
        except EngineError as e:
            raise PullFailed(f"CannotPullContainerError: {short(e.message)}") from e
        self._ready.add(token)

    async def _pull(self, image: str, tell: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()
        progress = Progress()
        timer: asyncio.TimerHandle | None = None

        def tell_progress() -> None:
            nonlocal timer
            timer = None
            tell(f"pulling image {image}{progress}")

        tell(f"pulling image {image}")
        try:
            auth = await credentials(registry_of(image))
        except (OSError, ValueError, TimeoutError) as e:
            raise PullFailed(f"CannotPullContainerError: no registry credentials: {short(e)}") from e
        try:
            async for news in self._engine.pull(image, auth):
                progress.note(news)
                if timer is None:
                    timer = loop.call_later(TELL_EVERY_S, tell_progress)
        finally:
            if timer is not None:
                timer.cancel()
        if not await self._engine.has_image(image):
            raise PullFailed(f"CannotPullContainerError: the engine has pulled image {image}, and does not have it")


class Progress:
    """How far a pull is: the engine tells of each layer."""

    def __init__(self) -> None:
        self._layers: dict[str, tuple[int, int]] = {}

    def note(self, news: Mapping[str, Any]) -> None:
        """One of the engine's messages."""
        layer, detail, status = news.get("id"), news.get("progressDetail") or {}, news.get("status")
        if not isinstance(layer, str) or status in ("Extracting", "Verifying Checksum"):
            return
        current, total = detail.get("current", 0), detail.get("total", 0)
        if status == "Downloading" and total > 0:
            self._layers[layer] = (current, total)
        elif status in ("Download complete", "Pull complete") and layer in self._layers:
            total = self._layers[layer][1]
            self._layers[layer] = (total, total)

    def __str__(self) -> str:
        total = sum(layer[1] for layer in self._layers.values())
        if not total:
            return ""
        return f": {sum(layer[0] for layer in self._layers.values()) / MB:.1f} of {total / MB:.1f} MB"


# -- credentials ------------------------------------------------------------------------------------


def registry_of(image: str) -> str:
    """The registry that an image's name points to, as Docker's configuration has it."""
    first, slash, _ = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return HUB if first in ("docker.io", "index.docker.io") else first
    return HUB


async def credentials(registry: str) -> dict[str, str] | None:
    """What Docker's own configuration (`docker login`) has for a registry; None: nothing.

    Raises:
        OSError, ValueError, TimeoutError: the configuration, or the helper that it names, cannot be used.
    """
    folder = os.environ.get("DOCKER_CONFIG")
    path = Path(folder) / "config.json" if folder else Path.home() / ".docker" / "config.json"
    try:
        config = msgspec.json.decode(await asyncio.to_thread(path.read_bytes))
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as e:
        raise ValueError(f"{path}: {e}") from None
    helper = config.get("credHelpers", {}).get(registry) or config.get("credsStore")
    if helper:
        return await _from_helper(helper, registry)
    auths = config.get("auths", {})
    entry = next(
        (auths[name] for name in (registry, f"https://{registry}", f"http://{registry}") if name in auths), None
    )
    return None if entry is None else _from_entry(registry, entry)


def _from_entry(registry: str, entry: Mapping[str, str]) -> dict[str, str] | None:
    if entry.get("identitytoken"):
        return {"identitytoken": entry["identitytoken"], "serveraddress": registry}
    if entry.get("auth"):
        user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
        return {"username": user, "password": password, "serveraddress": registry}
    return None


async def _from_helper(helper: str, registry: str) -> dict[str, str] | None:
    program = f"docker-credential-{helper}"
    process = await asyncio.create_subprocess_exec(
        program, "get",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(HELPER_S):
            output, _ = await process.communicate(registry.encode())
    except TimeoutError:
        process.kill()
        await process.wait()
        raise TimeoutError(f"{program} gave no answer within {HELPER_S:g} s") from None
    if process.returncode:
        if b"not found" in output:
            return None
        raise ValueError(f"{program}: {short(output.decode(errors='replace'))}")
    found = json.loads(output)
    if found.get("Username") == "<token>":
        return {"identitytoken": found["Secret"], "serveraddress": registry}
    return {"username": found["Username"], "password": found["Secret"], "serveraddress": registry}
