"""The protocol between the kernel and what supplies compute.

A backend serves one compute environment. It is told what to run in batches (`Launch`: a run of
attempts that share all but their index) and reports back through the `BackendContext` it was started
with; reports of one turn of the event loop are handled, and committed, together.

The rules that every backend keeps (docs/conformance.md lists them one by one, each with its check in
`anybatch.testing.backend_kit`):

- An attempt is named by its `AttemptKey`. Launching the same attempt twice, also in one call, runs it once.
- Every launched attempt is reported `exited`, `timed_out` or `lost` exactly once in the end. `started` may be
  left out when it never ran, and may be overtaken by `exited`. A repeated report changes nothing. An end that
  has not become durable (`when_durable`) is kept, and reported again to the next kernel that asks for it.
- `start` is given every attempt that was in flight when the kernel last stopped. Before it returns it
  has reported each as started, exited, lost or unknown, or has launched it (when it can be sure that
  it never ran). What a host holds besides is reported `found` by then. The kernel places nothing here until
  `start` has returned. Without `Capabilities.reattach` nothing outlives `close`, and what was known is lost.
- After `close` has returned nothing is reported, and no task, thread or open file of the backend's is left.
  Attempts that can outlive the process go on if `BackendContext.durable`, else they are ended.
- A method that raises, or that takes longer than the kernel's bound for it, costs this environment
  only: it turns INVALID with the error as its reason.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import msgspec

from .clock import Clock
from .core.container import ContainerSpec

API_VERSION = 1
"""The version of this protocol. A backend states the one it was written for as `api_version`."""


class AttemptKey(NamedTuple):
    """Names one attempt: the job's id, the child's index (0 for a single job), the attempt's number from 1."""

    job_id: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs of a key
    number: int


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What a host can run at once. `memory_mib` None: memory is not counted. `gpus`: device indexes.

    `lookahead`: attempts that it takes beyond that. It starts what it was given in order, each once it fits beside
    what runs, and reports `started` only then; until then an attempt takes none of the capacity.
    """

    vcpus_milli: int
    memory_mib: int | None = None
    gpus: tuple[int, ...] = ()
    lookahead: int = 0


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend can do beyond running attempts.

    `reattach`: attempts outlive the kernel's process and are found again by `start`.
    `remote`: hosts can outlive the kernel's machine, so a placement is synced to disk before its launch.
    `commands`: runs `command` and `script` as programs (False: it gives them a meaning of its own).
    `container`: the names of the fields of `AttemptSpec.container` that it honours (all that there are:
    `CONTAINER_FIELDS`; "command" stands for an image's own command). It is never sent a job that needs another.
    """

    reattach: bool = False
    remote: bool = False
    commands: bool = True
    container: frozenset[str] = frozenset()


class AttemptSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to run, with everything resolved; shared by all attempts of a job.

    `command` has its `Ref::` names replaced. `script`, where given, is the text of a program with its
    own `#!` line, and `command` its arguments. `environment` holds the user's variables and those
    AWS_BATCH_* ones that all attempts of the job share. `timeout_ms` counts from the attempt's start
    (None: no limit). `workdir` None: one folder per job, made by the backend. `scratch`: a folder of
    its own for each attempt, removed after it. `container` None: no container is asked for. With an image, `command`
    may be empty: the image's own runs.
    """

    command: tuple[str, ...]
    script: str | None = None
    environment: Mapping[str, str] = {}
    vcpus_milli: int = 1000
    memory_mib: int = 0
    gpus: int = 0
    timeout_ms: int | None = None
    workdir: str | None = None
    scratch: bool = False
    container: ContainerSpec | None = None


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """A run of attempts on one host that share all but their index.

    `array_size` is None for a single job (whose only index is 0), else how many children there are; indexes are any
    numbers from 0 to 999,999,999, for an array may have its own. `number` is the attempt number of
    all of them. `gpus` maps an index to the device indexes assigned to it. `known_started` is set only in
    what `Backend.start` is given: the kernel had recorded that these were running.
    """

    job_id: str
    number: int
    indexes: Sequence[int]
    host: str
    spec: AttemptSpec
    array_size: int | None = None
    gpus: Mapping[int, tuple[int, ...]] = {}
    known_started: bool = False

    def attempts(self) -> list[AttemptKey]:
        """The attempts, one by one."""
        return [AttemptKey(self.job_id, index, self.number) for index in self.indexes]

    def variables(self, index: int) -> dict[str, str]:
        """The variables of one attempt beyond `spec.environment` (contract 5.5, EV-1)."""
        own = {"AWS_BATCH_JOB_ATTEMPT": str(self.number)}
        if self.array_size is None:
            own["AWS_BATCH_JOB_ID"] = self.job_id
        else:
            own["AWS_BATCH_JOB_ID"] = f"{self.job_id}:{index}"
            own["AWS_BATCH_JOB_ARRAY_INDEX"] = str(index)
            own["AWS_BATCH_JOB_ARRAY_SIZE"] = str(self.array_size)
        if self.gpus.get(index):
            devices = ",".join(map(str, self.gpus[index]))
            own["CUDA_VISIBLE_DEVICES"] = own["NVIDIA_VISIBLE_DEVICES"] = devices
        return own


class EnvironmentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend is told of the compute environment that it serves.

    `hosts`: those that were registered one by one (`Kernel.register_host`), with the settings of each.
    """

    name: str
    managed: bool
    min_vcpus_milli: int
    max_vcpus_milli: int
    options: Mapping[str, Any]
    hosts: Mapping[str, Mapping[str, Any]] = {}


class ExpectedHost(msgspec.Struct, frozen=True, kw_only=True):
    """A host that an environment will have. Of `probed` ("vcpus", "memory", "gpus") only the host itself can tell."""

    name: str
    capacity: Capacity
    probed: frozenset[str] = frozenset()


class Expectation(msgspec.Struct, frozen=True, kw_only=True):
    """What an environment will be, as far as its options tell.

    `hosts`: those that it will begin with. `container`: the fields that it will honour, as `BackendContext.honours`.
    """

    hosts: Sequence[ExpectedHost]
    container: Collection[str] = frozenset()


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend knows of a host just now, beyond what it has reported: nothing of it is kept.

    `last_contact_ms`: when it was last heard of (None: never). `load`: processes that run or wait to, on average over
    the last minute (None: not known).
    """

    last_contact_ms: int | None = None
    load: float | None = None


class BackendContext(Protocol):
    """A backend's way back to the kernel. Its methods may be called only on the kernel's event loop.

    `state_dir` is this environment's folder beside the journal (a temporary one for a journal in
    memory), `logs_dir` the journal's folder for logs, `runtime_dir` a short private path for sockets.
    `durable` tells whether a later kernel will come back to this state.

    Times are whole epoch milliseconds by `clock` (of a host with a clock of its own: translated), and come in
    order: launched, started, ended, now. Lists of codes and times have one entry per index.
    """

    kernel_id: str
    settings: EnvironmentSettings
    clock: Clock
    state_dir: Path
    logs_dir: Path
    runtime_dir: Path
    durable: bool

    def host_up(self, host: str, capacity: Capacity, zone: str | None = None) -> None:
        """A host offers its capacity (again, or changed). Placement on it begins once `start` has returned."""

    def host_down(self, host: str, reason: str) -> None:
        """A host is gone for good; every attempt on it that has not exited counts as lost."""

    def host_paused(self, host: str, reason: str | None) -> None:
        """A host that is up takes no attempts for now, and why (None: it does again). What runs there goes on.

        A host of which nothing is known yet is reported up with 0 vCPUs, and paused.
        """

    def is_kept(self, job_id: str) -> bool:
        """Whether the kernel knows this job. What a host has of one that it does not know may be removed."""

    def host_of(self, attempt: AttemptKey) -> str | None:
        """The host on which an attempt is or was, as far as the kernel knows."""

    def started(self, job_id: str, number: int, indexes: Sequence[int], at_ms: Sequence[int] | None = None) -> None:
        """These attempts run. `at_ms`: when each began (epoch milliseconds; None: now)."""

    def exited(
        self,
        job_id: str,
        number: int,
        indexes: Sequence[int],
        codes: Sequence[int | None],
        at_ms: Sequence[int] | None = None,
        *,
        reason: str | None = None,
        status_reason: str | None = None,
        started_ms: Sequence[int] | None = None,
    ) -> None:
        """These attempts have ended, each with its exit code: 0 to 255, 128+n for signal n, None if there is none.

        An attempt that could not start has no code, and a `reason`; what it would have run is never a reason for
        `launch` to raise. By now all that it wrote can be read from `logs`.

        `reason` is the cause as AWS gives it for a container (at most 255 characters), `status_reason`
        replaces "Essential container in task exited", for example for one that could not start. Both hold
        for all attempts of the call. `started_ms`: when each began, in place of a call of `started` just before; for
        those that were reported started it changes nothing.
        """

    def timed_out(
        self,
        job_id: str,
        number: int,
        indexes: Sequence[int],
        codes: Sequence[int | None],
        at_ms: Sequence[int] | None = None,
    ) -> None:
        """These attempts have ended because the backend ended them at their `timeout_ms` (TO-3)."""

    def lost(self, job_id: str, number: int, indexes: Sequence[int], *, reason: str) -> None:
        """These attempts are gone without an exit code, with their host or with what watched them."""

    def found(self, host: str, job_id: str, number: int, indexes: Sequence[int]) -> None:
        """A host holds attempts that are not among the known ones that `start` was given.

        Those whose placement the log has lost with the power are adopted: report on them as on any others, after
        this. For the rest `stop` is called.
        """

    def unknown(self, job_id: str, number: int, indexes: Sequence[int], *, for_ms: int | None = None) -> None:
        """These attempts were not found just now. Never a reason to run them again by itself.

        Without other news they count as lost after `for_ms` (None: the kernel's own bound, a minute).
        """

    def waiting(self, job_id: str, number: int, indexes: Sequence[int], *, reason: str) -> None:
        """These attempts have not started yet, and why: shown to users until they start or end. Not kept.

        For what takes its time, such as an image that is being pulled, with how far that is.
        """

    def honours(self, fields: Collection[str]) -> None:
        """The container fields that this environment honours instead of `Capabilities.container`; called in `start`.

        With `IMAGE_REQUIRED` among them it gets no job without an image.

        Raises:
            ValueError: there are no such fields.
        """

    def failed(self, reason: str) -> None:
        """The environment cannot work; it turns INVALID with this reason until it is updated.

        For what somebody has to mend. What comes right by itself, and what concerns single attempts, is no reason.
        """

    def when_durable(self, callback: Callable[[], None]) -> None:
        """Call back, on the loop, once everything reported so far is synced to disk: the backend's acknowledgement."""


@runtime_checkable
class Backend(Protocol):
    """What a plugin implements. One instance serves one environment, from `start` to `close`.

    `Options` is a msgspec Struct that checks the environment's `options` when it is created or updated;
    what it does not know is refused (`forbid_unknown_fields=True`).

    What a backend may have besides: `HostOptions`, such a Struct for hosts that are registered one by one; and
    the methods of `WithHosts` and of `Forgets`.
    """

    api_version: ClassVar[int]
    capabilities: ClassVar[Capabilities]
    Options: ClassVar[type[msgspec.Struct]]

    async def start(self, context: BackendContext, known: Sequence[Launch]) -> None:
        """Report hosts, and settle every known attempt; then be ready for `launch`.

        The hosts of an unmanaged environment that are there have been reported when it returns.

        Called again on a backend that works when its environment's settings have changed: `context` carries
        the new ones and replaces the earlier context, attempts in flight go on and are among the known. Hosts
        are reported again, with what they offer now; the earlier context is told nothing any more.

        Raises:
            BackendError: it cannot work as configured; the environment turns INVALID with the message.
        """

    async def launch(self, launches: Sequence[Launch]) -> None:
        """Run these. Returns once they are handed over; what becomes of each is reported.

        An attempt has a clean environment: a base of the backend's that holds nothing of the kernel's process,
        `AttemptSpec.environment`, and `Launch.variables`, of which the later win.

        Raises:
            BackendError: none of these runs, and nothing is reported of them. `retryable`: it costs these attempts
                only. Any other error, and one that is not retryable, costs the environment too.
        """

    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        """End these: SIGTERM to the whole tree now, SIGKILL after `grace_ms`. Unknown or ended ones are ignored.

        Returns once that is under way; the end of each is reported as any other, with its own exit code if it
        chose one. One that has not started yet ends too. Of several stops the earliest SIGKILL counts. The tree
        is every process that the attempt has begotten, also in groups and sessions of their own.
        """

    def logs(self, attempt: AttemptKey, *, follow: bool) -> AsyncIterator[bytes]:
        """What the attempt has written so far, in pieces; with `follow`, until it has ended.

        stdout and stderr in the order of their writes (where they come apart: each in its own). With `follow`
        pieces come while it runs. Complete once the end was reported, and also for a later kernel. Of an attempt
        that is not known, or has written nothing, there is nothing.
        """

    async def close(self) -> None:
        """Let go. Attempts that can outlive the process go on (the kernel has stopped those it wants stopped).

        Where `BackendContext.durable` is False nobody will come back, and they end. Also called after a `start`
        that failed, or was never made.
        """


@runtime_checkable
class WithHosts(Protocol):
    """A backend that can say more of its hosts."""

    def host_status(self) -> Mapping[str, HostStatus]:
        """What it knows of each host now. It waits for nothing."""


@runtime_checkable
class Foretells(Protocol):
    """A backend whose options tell what an environment will be. `anybatch check` asks, and starts nothing."""

    @staticmethod
    def expects(settings: EnvironmentSettings) -> Expectation:
        """It is asked of the class, and touches nothing outside but files that the options name.

        Raises:
            BackendError: `start` would fail for what the options say. A message may begin with the key and ": ".
        """


@runtime_checkable
class Forgets(Protocol):
    """A backend that keeps things of jobs elsewhere than below `state_dir` and `logs_dir`."""

    async def forget(self, job_ids: Sequence[str]) -> None:
        """These jobs are gone for good: remove what is kept of them. What cannot be reached now may be left for later.

        `BackendContext.is_kept` tells of what is found later.
        """


def log_path(logs_dir: Path, attempt: AttemptKey) -> Path:
    """Where a backend on this machine keeps an attempt's log: `<logs_dir>/<job id>/<index>-<number>.log`.

    From index 1,000 on there is a folder for every thousand between: `<job id>/<index // 1000>/<index>-<number>.log`.
    An attempt that has written nothing has no log.
    """
    folder = logs_dir / attempt.job_id
    if attempt.index >= 1000:
        folder /= str(attempt.index // 1000)
    return folder / f"{attempt.index}-{attempt.number}.log"


BackendFactory = Callable[[], Backend]
"""Makes a backend for one environment. A class without required arguments is one."""
