"""Roles: whose credentials the attempts of a job get.

A definition or a job names a role (`role="etl"`); the kernel keeps that name and nothing more. Who knows what stands
behind it, such as a front end, supplies it:

    with supply_roles(kernel, supplier):
        ...

Just before attempts with a role are handed to their backend the supplier is asked for environment variables of each
attempt. They are given to that attempt alone, and are in no journal, event or log. A supplier that raises an
`AnyBatchError` costs these attempts: they end without having started, its message as their reason (contract ST-8).
It is asked again for attempts that were not started when a kernel went, so it has to give the same, or as good, twice.

Attempts with a role that are there before anybody supplies roles wait, for `SUPPLIER_S_MAX` from the kernel's start at
most; and with them the launches behind them in their environment.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import anyio
from msgspec import Struct

from .backend import AttemptKey
from .core.errors import AnyBatchError, BackendError, Conflict

if TYPE_CHECKING:
    from .kernel import Kernel

SUPPLIER_S_MAX: Final = 30.0
"""How long after the kernel's start attempts with a role wait for somebody who supplies it."""


class RoleRequest(Struct, frozen=True, kw_only=True):
    """Attempts of one job that are about to be launched with a role.

    `array_size` is None for a single job (as in `Launch`). `environment` is their compute environment, `backend` and
    `options` what runs it.
    """

    role: str
    attempts: Sequence[AttemptKey]
    array_size: int | None
    environment: str
    backend: str
    options: Mapping[str, Any]


RoleSupplier = Callable[[RoleRequest], Mapping[AttemptKey, Mapping[str, str]]]
"""Gives the variables of each attempt of a request. It is called on the kernel's event loop, so it waits for nothing.

A variable that the job sets itself stays as the job has it.
"""


class Roles:
    """Who supplies roles to a kernel, if anybody does."""

    def __init__(self) -> None:
        self._supplier: RoleSupplier | None = None
        self._there = asyncio.Event()
        self._until: float | None = None

    def open(self) -> None:
        """The kernel starts: from now on attempts wait for a supplier."""
        self._until = anyio.current_time() + SUPPLIER_S_MAX

    @contextlib.contextmanager
    def supplied(self, supplier: RoleSupplier) -> Iterator[None]:
        """Supply roles while the `with` lasts.

        Raises:
            Conflict: somebody does already.
        """
        if self._supplier is not None:
            raise Conflict("roles", "this kernel", "somebody else supplies them")
        self._supplier = supplier
        self._there.set()
        try:
            yield
        finally:
            self._supplier = None

    async def wait(self) -> None:
        """Return once somebody supplies roles, or has for too long not come."""
        left = 0.0 if self._until is None else self._until - anyio.current_time()
        if self._supplier is None and left > 0:
            with anyio.move_on_after(left):
                await self._there.wait()

    def variables(self, request: RoleRequest) -> Mapping[AttemptKey, Mapping[str, str]]:
        """The variables of each attempt.

        Raises:
            AnyBatchError: there are none, and why.
        """
        if self._supplier is None:
            raise BackendError(f"nobody supplies the role {request.role!r} to this kernel")
        try:
            found = self._supplier(request)
            return {key: dict(found[key]) for key in request.attempts}
        except AnyBatchError:
            raise
        except Exception as e:
            raise BackendError(f"the role {request.role!r} could not be supplied: {type(e).__name__}: {e}") from e


def supply_roles(kernel: Kernel, supplier: RoleSupplier) -> contextlib.AbstractContextManager[None]:
    """Supply the roles of a kernel's jobs while the `with` lasts; one supplier at a time.

    Raises:
        KernelClosed: the kernel is not open.
        Conflict: (at entry) somebody supplies them already.
    """
    return kernel._roles.supplied(supplier)  # what other processes can call are methods; this is not for them
