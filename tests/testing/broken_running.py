"""Backends that each break one rule of running attempts."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, ClassVar

import msgspec
from anybatch.backends.inline import InlineBackend
from anybatch.backends.process import ProcessBackend
from anybatch.kernel.backend import (
    API_VERSION,
    AttemptKey,
    Backend,
    BackendContext,
    Capabilities,
    EnvironmentSettings,
    Expectation,
    Launch,
)
from anybatch.testing.backend_kit import FUNCTIONS
from anybatch.testing.null import NullBackend
from testing.broken import SOON, Through, Wrapped, WrappedProcesses, breaks

# -- what it is ---------------------------------------------------------------------------------------


@breaks("api_version_is_this_ones")
class OtherVersion(Wrapped):
    api_version = API_VERSION + 1


@breaks("it_has_every_part_of_the_protocol")
class NoLogs(Wrapped):
    logs: Any = None


@breaks("options_refuse_unknown_fields")
class TakesAnyOption(Wrapped):
    class Options(msgspec.Struct):
        memory: int | None = None


@breaks("capabilities_are_declared")
class OddCapabilities(Wrapped):
    capabilities = Capabilities(commands=False, reattach="yes")  # type: ignore[arg-type]  # that is the point


@breaks("capabilities_are_declared")
class ChangingCapabilities(Wrapped):
    count = 0

    def __init__(self) -> None:
        super().__init__()
        ChangingCapabilities.count += 1
        self.capabilities = Capabilities(commands=bool(self.count & 1))  # type: ignore[misc]  # it is wrong


@breaks("commands_are_programs")
class RunsNothing(NullBackend):
    capabilities: ClassVar[Capabilities] = Capabilities(commands=True)


@breaks("start_offers_hosts")
class NoHosts(Wrapped):
    class through(Through):
        def host_up(self, *_: Any) -> None:
            pass


class OneHost(Wrapped):
    """What InlineBackend tells of itself."""

    @staticmethod
    def expects(settings: EnvironmentSettings) -> Expectation:
        return InlineBackend.expects(settings)


@breaks("what_is_expected_is_offered")
class ExpectsMoreHosts(OneHost):
    @staticmethod
    def expects(settings: EnvironmentSettings) -> Expectation:
        (host,) = InlineBackend.expects(settings).hosts
        return Expectation(hosts=[host, msgspec.structs.replace(host, name="another")])


@breaks("what_is_expected_is_offered")
class ExpectsMoreMemory(OneHost):
    @staticmethod
    def expects(settings: EnvironmentSettings) -> Expectation:
        (host,) = InlineBackend.expects(settings).hosts
        more = msgspec.structs.replace(host.capacity, memory_mib=1 << 40)
        return Expectation(hosts=[msgspec.structs.replace(host, capacity=more)])


@breaks("what_is_expected_is_offered")
class ExpectsToHonourMore(OneHost):
    @staticmethod
    def expects(settings: EnvironmentSettings) -> Expectation:
        return Expectation(hosts=InlineBackend.expects(settings).hosts, container={"privileged"})


# -- exits --------------------------------------------------------------------------------------------


def changed(change: Callable[[int | None], Any]) -> type[Through]:
    """A context that is told other exit codes."""

    class Changed(Through):
        def exited(self, job_id: str, number: int, indexes: Any, codes: Any, *rest: Any, **more: Any) -> None:
            self.to.exited(job_id, number, indexes, [change(code) for code in codes], *rest, **more)

    return Changed


@breaks("exit_codes_are_reported")
class YesOrNo(Wrapped):
    through = changed(lambda code: code and 1)


@breaks("each_attempt_has_its_own_end")
class MixesUp(Wrapped):
    """No code is less than those before it."""

    last: Any = 0

    class through(Through):
        def exited(self, job_id: str, number: int, indexes: Any, codes: Any, *rest: Any, **more: Any) -> None:
            self.by.last = (codes := [*accumulate([self.by.last, *codes], max)][1:])[-1]
            self.to.exited(job_id, number, indexes, codes, *rest, **more)


@breaks("signals_are_reported_as_128_and_their_number")
class BareSignals(WrappedProcesses):
    through = changed(lambda code: code - 128 if code and code > 128 else code)


@breaks("what_cannot_start_is_reported")
class RaisesOnWhatIsMissing(Wrapped):
    async def launch(self, launches: Sequence[Launch]) -> None:
        if launches[0].spec.command[0] not in FUNCTIONS:
            raise FileNotFoundError(launches[0].spec.command[0])
        await super().launch(launches)


@breaks("what_cannot_start_is_reported")
class AsShellsDo(Wrapped):
    through = changed(lambda code: 127 if code is None else code)


@breaks("each_attempt_ends_once")
class EndsTwice(Wrapped):
    class through(Through):
        def exited(self, *args: Any, **more: Any) -> None:
            self.to.exited(*args, **more)
            self.to.exited(*args, **more)


@breaks("running_attempts_are_reported_started", time_scale=SOON)
class SilentStart(Wrapped):
    class through(Through):
        def started(self, *_: Any) -> None:
            pass


@breaks("reports_are_well_formed")
class Seconds(Wrapped):
    class through(Through):
        def started(self, job_id: str, number: int, indexes: Any, *_: Any) -> None:
            self.to.started(job_id, number, indexes, [self.clock.now_ms() / 1000 for _ in indexes])


@breaks("reports_are_well_formed")
class ShortColumns(Wrapped):
    class through(Through):
        def started(self, job_id: str, number: int, indexes: Any, *_: Any) -> None:
            self.to.started(job_id, number, indexes, [self.clock.now_ms()] * (len(indexes) + 1))


@breaks("reports_are_well_formed")
class FromAThread(Wrapped):
    class through(Through):
        def started(self, *args: Any) -> None:
            thread = threading.Thread(target=self.to.started, args=args)
            thread.start()
            thread.join()


@breaks("the_environment_stays_valid")
class GivesUp(Wrapped):
    async def launch(self, launches: Sequence[Launch]) -> None:
        await super().launch(launches)
        self.context.failed("no mood for this")


def at(shift_ms: int) -> type[Through]:
    """A context that is told that attempts ended at another time."""

    class Shifted(Through):
        def exited(self, job_id: str, number: int, indexes: Any, codes: Any, *_: Any, **more: Any) -> None:
            times = [self.clock.now_ms() + shift_ms for _ in indexes]
            self.to.exited(job_id, number, indexes, codes, times, **more)

    return Shifted


@breaks("times_are_in_order")
class EndsBeforeTheLaunch(Wrapped):
    through = at(-5_000)


@breaks("times_are_in_order")
class EndsInTheFuture(Wrapped):
    through = at(5_000)


# -- what an attempt is given -------------------------------------------------------------------------


@breaks("variables_reach_the_attempt")
class NoArrayVariables(Wrapped):
    async def launch(self, launches: Sequence[Launch]) -> None:
        await super().launch([msgspec.structs.replace(launch, array_size=None) for launch in launches])


@breaks("variables_of_the_kernel_stay_out")
class HandsItsOwnDown(WrappedProcesses):
    def make(self) -> Backend:
        return ProcessBackend(agent_idle_ms=1_000, base_environment=os.environ)


@breaks("scripts_are_run_with_the_command_as_arguments")
class ForgetsArguments(WrappedProcesses):
    async def launch(self, launches: Sequence[Launch]) -> None:
        spec = msgspec.structs.replace(launches[0].spec, command=())
        await super().launch([msgspec.structs.replace(launch, spec=spec) for launch in launches])


# -- running once -------------------------------------------------------------------------------------


@breaks("launching_twice_runs_once")
@breaks("launching_twice_at_once_ends_once")
class RunsTwice(Wrapped):
    """What is launched again is run by another backend."""

    async def start(self, context: BackendContext, known: Sequence[Launch]) -> None:
        await super().start(context, known)
        self.others: list[Backend] = []

    async def launch(self, launches: Sequence[Launch]) -> None:
        for launch in launches:
            if self.launched.keys() & set(launch.attempts()):
                other = InlineBackend(FUNCTIONS)
                self.others.append(other)
                await other.start(self.context, [])
                await other.launch([launch])
            else:
                await super().launch([launch])

    async def stop(self, attempts: Sequence[AttemptKey], grace_ms: int) -> None:
        for one in (self.inner, *self.others):
            await one.stop(attempts, grace_ms)

    async def close(self) -> None:
        for one in (self.inner, *self.others):
            await one.close()


@breaks("a_later_attempt_runs_again")
class KnowsJobsOnly(Wrapped):
    async def launch(self, launches: Sequence[Launch]) -> None:
        for launch in launches:
            if launch.number == 1:
                await super().launch([launch])
            else:  # it has run, has it not?
                self.context.exited(launch.job_id, launch.number, launch.indexes, [0] * len(launch.indexes))


@breaks("a_crowd_is_run")
class DropsACrowd(Wrapped):
    async def launch(self, launches: Sequence[Launch]) -> None:
        for launch in launches:
            await super().launch([msgspec.structs.replace(launch, indexes=launch.indexes[:900])])
            self.context.lost(launch.job_id, launch.number, launch.indexes[900:], reason="too many")


@breaks("a_crowd_is_run", time_scale=SOON)
class ForgetsTheLast(Wrapped):
    async def launch(self, launches: Sequence[Launch]) -> None:
        await super().launch([msgspec.structs.replace(one, indexes=one.indexes[:-1]) for one in launches])
