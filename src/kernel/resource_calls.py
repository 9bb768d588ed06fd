"""The Kernel's methods on job definitions, job queues and compute environments."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from . import arguments as args
from . import bodies
from .calls import Calls
from .core.container import ContainerSpec
from .core.errors import InvalidValue, NotFound
from .core.inputs import (
    ChangeTags,
    CreateEnvironment,
    CreateQueue,
    DeleteEnvironment,
    DeleteQueue,
    DeregisterDefinition,
    RegisterDefinition,
    UpdateEnvironment,
    UpdateQueue,
)
from .core.model import (
    RETAIN_FAILED_MS,
    RETAIN_SUCCEEDED_MS,
    DefinitionBody,
    EnvironmentBody,
    QueueBody,
    RetryStrategy,
    TaggedKind,
)
from .core.resources import get_environment, get_queue
from .core.submit import find_definition
from .core.tags import find_tagged, tags_of
from .views import (
    DefinitionDetail,
    EnvironmentDetail,
    QueueDetail,
    definition_detail,
    environment_detail,
    queue_detail,
)

State = Literal["ENABLED", "DISABLED"]


class ResourceCalls(Calls):
    """The methods on definitions, queues and environments."""

    # -- job definitions --------------------------------------------------------------------------

    async def register_job_definition(
        self,
        name: str,
        *,
        command: Sequence[str] | None = None,
        script: str | os.PathLike[str] | None = None,
        environment: Mapping[str, str] | None = None,
        parameters: Mapping[str, str] | None = None,
        vcpus: float = 1,
        memory: int | str = 0,
        gpus: int = 0,
        retry: int | RetryStrategy | Mapping[str, Any] = 1,
        timeout: float | None = None,
        workdir: str | None = None,
        scratch: bool = False,
        image: str | None = None,
        container: ContainerSpec | Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        scheduling_priority: int = 0,
        metadata: Mapping[str, Any] | None = None,
        max_running: int | None = None,
        max_failures: int | None = None,
        on_max_failures: str | None = None,
        role: str | None = None,
        checkpoint_exit_codes: Sequence[int] | None = None,
        max_checkpoints: int | None = None,
        exist_ok: bool = False,
    ) -> DefinitionDetail:
        """Make the next revision of a definition; arguments as in `submit_job`.

        `parameters` are the defaults of the command's `Ref::name` places. With `exist_ok`, the newest revision
        is returned if it is equal.

        Raises:
            Conflict: with `exist_ok`, the newest revision differs in a field, which the error names.
        """
        body = bodies.definition(
            command=command,
            script=script,
            environment=environment,
            parameters=parameters,
            vcpus=vcpus,
            memory=memory,
            gpus=gpus,
            retry=retry,
            timeout=timeout,
            workdir=workdir,
            scratch=scratch,
            image=image,
            container=container,
            tags=tags,
            scheduling_priority=scheduling_priority,
            metadata=metadata,
            max_running=max_running,
            max_failures=max_failures,
            on_max_failures=on_max_failures,
            role=role,
            checkpoint_exit_codes=checkpoint_exit_codes,
            max_checkpoints=max_checkpoints,
        )
        return await self.put_definition(name, body, exist_ok=exist_ok)

    async def put_definition(self, name: str, body: DefinitionBody, *, exist_ok: bool = False) -> DefinitionDetail:
        """Make the next revision from a checked body."""
        request = RegisterDefinition(name=args.text("name", name), body=body, exist_ok=args.flag("exist_ok", exist_ok))
        found, revision = await self._open.request(request)
        return definition_detail(self._live.state.definitions[found][revision])

    async def deregister_job_definition(self, definition: str | DefinitionDetail) -> None:
        """Turn a revision, `name:revision`, INACTIVE: no new job can use it; jobs that do go on (JD-6)."""
        if isinstance(definition, DefinitionDetail):
            definition = definition.reference
        reference = args.definition("definition", definition)
        name, _, revision = reference.partition(":")
        if not revision:
            raise InvalidValue("definition", reference, "it names one revision: 'name:revision'")
        await self._open.request(DeregisterDefinition(name=name, revision=int(revision)))

    async def describe_job_definitions(
        self, name: str | None = None, *, active: bool | None = None
    ) -> list[DefinitionDetail]:
        """Every revision, of one name or of all, by name and newest first; `active` keeps (in)active ones only."""
        definitions = self._open.state.definitions
        if active is not None:
            args.flag("active", active)
        if name is not None and args.text("name", name) not in definitions:
            raise NotFound("job definition", name)
        chosen = sorted(definitions) if name is None else [name]
        rows = [definitions[n][revision] for n in chosen for revision in sorted(definitions[n], reverse=True)]
        return [definition_detail(row) for row in rows if active is None or row.active is active]

    async def describe_job_definition(self, definition: str) -> DefinitionDetail:
        """The revision that `name:revision` names, or the newest ACTIVE one of `name`."""
        reference = args.definition("definition", definition)
        state = self._open.state
        name, _, revision = reference.partition(":")
        row = state.definitions.get(name, {}).get(int(revision)) if revision else find_definition(state, name)
        if row is None:
            raise NotFound("job definition", reference)
        return definition_detail(row)

    async def resolve_job_definition(self, definition: str) -> str:
        """As `name:revision`, the revision that a submit with `name` or `name:revision` would take.

        Raises:
            NotFound: there is none that is ACTIVE.
        """
        row = find_definition(self._open.state, args.definition("definition", definition))
        return f"{row.name}:{row.revision}"

    # -- tags -------------------------------------------------------------------------------------

    async def tag_resource(
        self,
        kind: TaggedKind | str,
        name: str,
        tags: Mapping[str, str] | None = None,
        *,
        remove: Sequence[str] = (),
    ) -> Mapping[str, str]:
        """Set these tags of an environment, queue, definition (`name:revision`) or job (by id), and remove others.

        Returns its tags as they are then; called with neither, it only tells them.
        """
        if kind not in tuple(TaggedKind):
            raise InvalidValue("kind", kind, f"it is one of {', '.join(TaggedKind)}")
        request = ChangeTags(
            kind=TaggedKind(kind),
            name=args.text("name", name),
            put=args.texts("tags", tags),
            remove=args.names("remove", remove),
        )
        if request.put or request.remove:
            await self._open.request(request)
        return dict(tags_of(find_tagged(self._open.state, request.kind, request.name)))

    # -- job queues -------------------------------------------------------------------------------

    async def create_job_queue(
        self,
        name: str,
        *,
        priority: int,
        compute_environments: Sequence[str],
        state: State = "ENABLED",
        retain_succeeded: float = RETAIN_SUCCEEDED_MS / 1000,
        retain_failed: float = RETAIN_FAILED_MS / 1000,
        tags: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        exist_ok: bool = False,
    ) -> QueueDetail:
        """Create a queue over one to three environments, tried in this order. Higher priorities go first.

        `retain_succeeded` and `retain_failed` say for how many seconds an ended job is kept (24 hours, 7 days), at
        the least; one that an unfinished job depends on is kept longer.

        With `exist_ok`, an equal queue that is there is returned.

        Raises:
            Conflict: it exists (with `exist_ok`: and differs in a field, which the error names), or an
                environment is not VALID.
        """
        body = bodies.queue(
            priority=priority,
            compute_environments=compute_environments,
            state=state,
            tags=tags,
            retain_succeeded=retain_succeeded,
            retain_failed=retain_failed,
            metadata=metadata,
        )
        return await self.put_queue(name, body, exist_ok=exist_ok)

    async def put_queue(self, name: str, body: QueueBody, *, exist_ok: bool = False) -> QueueDetail:
        """Create a queue from a checked body."""
        request = CreateQueue(name=args.text("name", name), body=body, exist_ok=args.flag("exist_ok", exist_ok))
        self._open  # noqa: B018 - raises unless the kernel is open
        for environment in body.compute_environments:
            await self._drivers.settle(environment)
        await self._open.request(request)
        return queue_detail(get_queue(self._live.state, name))

    async def update_job_queue(
        self,
        name: str,
        *,
        priority: int | None = None,
        state: State | None = None,
        compute_environments: Sequence[str] | None = None,
        retain_succeeded: float | None = None,
        retain_failed: float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> QueueDetail:
        """Change what is given. A DISABLED queue takes no jobs; those that it has go on (JQ-7)."""
        environments = (
            None if compute_environments is None else args.names("compute_environments", compute_environments)
        )
        request = UpdateQueue(
            name=args.text("name", name),
            priority=None if priority is None else args.whole("priority", priority),
            state=None if state is None else bodies.resource_state(state),
            compute_environments=environments,
            retain_succeeded_ms=(
                None if retain_succeeded is None else args.milliseconds("retain_succeeded", retain_succeeded)
            ),
            retain_failed_ms=None if retain_failed is None else args.milliseconds("retain_failed", retain_failed),
            metadata=None if metadata is None else args.metadata("metadata", metadata),
        )
        await self._open.request(request)
        return queue_detail(get_queue(self._live.state, name))

    async def delete_job_queue(self, name: str) -> None:
        """Delete a DISABLED queue. Its waiting jobs fail, its running ones are stopped; then it is gone (JQ-10)."""
        await self._open.request(DeleteQueue(name=args.text("name", name)))

    async def describe_job_queues(self, names: Sequence[str] | None = None) -> list[QueueDetail]:
        """All queues, or those named (in that order)."""
        state = self._open.state
        chosen = sorted(state.queues) if names is None else args.names("names", names)
        return [queue_detail(get_queue(state, name)) for name in chosen]

    # -- compute environments ---------------------------------------------------------------------

    async def create_compute_environment(
        self,
        name: str,
        *,
        backend: str,
        max_vcpus: float | None = None,
        min_vcpus: float = 0,
        managed: bool = True,
        state: State = "ENABLED",
        options: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        exist_ok: bool = False,
    ) -> EnvironmentDetail:
        """Create an environment on a backend, and return once that has started or failed to.

        `max_vcpus` None: as many as this process may use CPUs. `options` are the backend's own. If the backend
        cannot start, the environment exists with status INVALID and the reason; `update_compute_environment`
        tries again. With `exist_ok`, an equal environment that is there is returned.

        Raises:
            InvalidValue: also for options that the backend does not take.
            PluginError: the backend is installed but cannot be loaded.
            Conflict: it exists (with `exist_ok`: and differs in a field, which the error names).
        """
        body = bodies.environment(
            self._registry,
            backend=backend,
            max_vcpus=max_vcpus,
            min_vcpus=min_vcpus,
            managed=managed,
            state=state,
            options=options,
            tags=tags,
            metadata=metadata,
        )
        return await self.put_environment(name, body, exist_ok=exist_ok)

    async def put_environment(self, name: str, body: EnvironmentBody, *, exist_ok: bool = False) -> EnvironmentDetail:
        """Create an environment from a checked body."""
        request = CreateEnvironment(name=args.text("name", name), body=body, exist_ok=args.flag("exist_ok", exist_ok))
        await self._open.request(request)
        await self._drivers.settle(name)
        return self._environment(name)

    def _environment(self, name: str) -> EnvironmentDetail:
        state = self._open.state
        return environment_detail(state, get_environment(state, name), self._drivers.host_status(name))

    async def update_compute_environment(
        self,
        name: str,
        *,
        state: State | None = None,
        min_vcpus: float | None = None,
        max_vcpus: float | None = None,
        options: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> EnvironmentDetail:
        """Change what is given, and return once the backend has started anew.

        A DISABLED environment takes no new attempts; those that run go on (CE-6).
        """
        row = get_environment(self._open.state, args.text("name", name))
        checked = None
        if options is not None:
            backend = row.body.backend
            checked = args.options("options", options, self._registry.options(backend), f"backend {backend!r}")
        request = UpdateEnvironment(
            name=name,
            state=None if state is None else bodies.resource_state(state),
            min_vcpus_milli=None if min_vcpus is None else args.milli("min_vcpus", min_vcpus),
            max_vcpus_milli=None if max_vcpus is None else args.milli("max_vcpus", max_vcpus),
            options=checked,
            metadata=None if metadata is None else args.metadata("metadata", metadata),
        )
        await self._open.request(request)
        await self._drivers.settle(name)
        return self._environment(name)

    async def delete_compute_environment(self, name: str) -> None:
        """Delete a DISABLED environment that no queue names and nothing runs on (CE-16)."""
        await self._open.request(DeleteEnvironment(name=args.text("name", name)))

    async def describe_compute_environments(self, names: Sequence[str] | None = None) -> list[EnvironmentDetail]:
        """All environments with their hosts, or those named (in that order)."""
        state = self._open.state
        chosen = sorted(state.environments) if names is None else args.names("names", names)
        return [self._environment(name) for name in chosen]
