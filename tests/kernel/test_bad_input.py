"""Every public call with what it does not take: a RequestError that names field, value and what is allowed.

Nothing has changed afterwards, and the kernel goes on.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from anybatch import (
    SEQUENTIAL,
    Conflict,
    EvaluateOnExit,
    InvalidValue,
    Kernel,
    NotFound,
    QuotaExceeded,
    Quotas,
    RequestError,
    RetryStrategy,
    after_any,
    after_failure,
    n_to_n,
    sequential,
)
from anybatch.testing.null import NullBackend
from kernel_rig import ManualBackend, busy_kernel, kernel_on, live, snapshot, submit, turns

Call = Callable[[Any], Any]
Case = tuple[Call, type[RequestError], str]
SURROGATE = "\ud800"
HUGE = 10**5000
UNKNOWN = "00000000-0000-4000-8000-000000000000"


class Odd:
    """Of no use anywhere."""

    def __repr__(self) -> str:
        return "<odd>"


def submits(text: str, kind: type[RequestError] = InvalidValue, **arguments: Any) -> Case:
    name = arguments.pop("name", "job")
    return (lambda k: k.submit_job(name, **{"queue": "q", "command": ["x"], **arguments})), kind, text


def registers(text: str, kind: type[RequestError] = InvalidValue, **arguments: Any) -> Case:
    name = arguments.pop("name", "new")
    return (lambda k: k.register_job_definition(name, **{"command": ["x"], **arguments})), kind, text


def creates(text: str, kind: type[RequestError] = InvalidValue, **arguments: Any) -> Case:
    name = arguments.pop("name", "new")
    return (lambda k: k.create_compute_environment(name, **{"backend": "null", **arguments})), kind, text


def queues(text: str, kind: type[RequestError] = InvalidValue, **arguments: Any) -> Case:
    name = arguments.pop("name", "new")
    full = {"priority": 1, "compute_environments": ["b"], **arguments}
    return (lambda k: k.create_job_queue(name, **full)), kind, text


def body(make: Callable[..., Case]) -> list[Case]:
    """What definitions and submits have in common."""
    return [
        make("command: 'echo hi'", command="echo hi"),
        make("command: b'x'", command=b"x"),
        make("command: 7", command=7),
        make("command: {'x'}", command={"x"}),
        make("command[1]: 3", command=["x", 3]),
        make("command[0]: b'x'", command=[b"x"]),
        make("command[0]: ''", command=[""]),
        make("command[1]: 'a\\x00b'", command=["x", "a\0b"]),
        make("command[0]:", command=[SURROGATE]),
        make("command: []", command=[]),
        make("script: 'no first line\\n'", script="no first line\n"),
        make("script: '/no/such/file'", script="/no/such/file"),
        make("script: '/'", script=Path("/")),
        make("script: 5", script=5),
        make("script: 'a\\x00b'", script="a\0b"),
        make("script:", script="#!/bin/sh\n" + SURROGATE),
        make("script: ''", script=""),
        make("script: 263178", QuotaExceeded, script="#!/bin/sh\n" + "#" * (257 << 10)),
        make("environment: 'A=b'", environment="A=b"),
        make("environment: []", environment=[]),
        make("environment: 0", environment=0),
        make("environment: ''", environment=""),
        make("environment: 1 ", environment={1: "x"}),
        make("environment.A: 1", environment={"A": 1}),
        make("environment.A:", environment={"A": SURROGATE}),
        make("environment:", environment={SURROGATE: "x"}),
        make("environment.A: 'a\\x00b'", environment={"A": "a\0b"}),
        make("environment: 'A=B'", environment={"A=B": "x"}),
        make("environment: ''", environment={"": "x"}),
        make("environment.AWS_BATCH_JOB_ID: 'x'", environment={"AWS_BATCH_JOB_ID": "x"}),
        make("parameters: 7", parameters=7),
        make("parameters.a: None", parameters={"a": None}),
        make("parameters.a:", parameters={"a": SURROGATE}),
        make("tags: [('a', 'b')]", tags=[("a", "b")]),
        make("tags.a: 1", tags={"a": 1}),
        make("tags: ''", tags={"": "x"}),
        make("tags: 'aws:x'", tags={"aws:x": "x"}),
        make("tags.a:", tags={"a": "x" * 257}),
        make("tags: 'kkk", tags={"k" * 129: "x"}),
        make("at most 50 tags", QuotaExceeded, tags={str(n): "" for n in range(51)}),
        make("vcpus: 0", vcpus=0),
        make("vcpus: -1", vcpus=-1),
        make("vcpus: 'many'", vcpus="many"),
        make("vcpus: 'inf'", vcpus="inf"),
        make("vcpus: True", vcpus=True),
        make("vcpus: nan", vcpus=math.nan),
        make("vcpus: inf", vcpus=math.inf),
        make("vcpus: 1e+300", vcpus=1e300),
        make("vcpus: 0.0001", vcpus=0.0001),
        make("vcpus: [1]", vcpus=[1]),
        make("vcpus:", vcpus=HUGE),
        make("memory: -5", memory=-5),
        make("memory: 1.5", memory=1.5),
        make("memory: True", memory=True),
        make("memory: '2 apples'", memory="2 apples"),
        make("memory: ''", memory=""),
        make("memory: '-2GiB'", memory="-2GiB"),
        make("memory: '999999999TiB'", memory="999999999TiB"),
        make("memory:", memory="9" * 400 + "TiB"),
        make("memory:", memory=HUGE),
        make("gpus: -1", gpus=-1),
        make("gpus: 1.0", gpus=1.0),
        make("gpus: '1'", gpus="1"),
        make("gpus: 100000", gpus=100_000),
        make("gpus:", gpus=HUGE),
        make("retry.attempts: 0", QuotaExceeded, retry=0),
        make("retry.attempts: 11", QuotaExceeded, retry=11),
        make("retry: True", retry=True),
        make("retry: '3'", retry="3"),
        make("retry: 2.0", retry=2.0),
        make("retry: [3]", retry=[3]),
        make("retry:", retry=HUGE),
        make("retry.attempts: None", retry={}),
        make("retry: 'tries'", retry={"attempts": 1, "tries": 2}),
        make("retry.attempts: 'x'", retry=RetryStrategy("x")),  # type: ignore[arg-type]
        make("retry.evaluate_on_exit: 5", retry=RetryStrategy(3, 5)),  # type: ignore[arg-type]
        make("retry.evaluate_on_exit: 'retry'", retry={"attempts": 1, "evaluate_on_exit": "retry"}),
        make("retry.evaluate_on_exit[0]: 7", retry={"attempts": 1, "evaluate_on_exit": [7]}),
        make(
            "retry.evaluate_on_exit[0].action: 'stop'", retry={"attempts": 1, "evaluate_on_exit": [{"action": "stop"}]}
        ),
        make(
            "retry.evaluate_on_exit[0]: 'on'", retry={"attempts": 1, "evaluate_on_exit": [{"action": "exit", "on": 1}]}
        ),
        make("retry.evaluate_on_exit[0]:", retry={"attempts": 1, "evaluate_on_exit": [{"action": "exit"}]}),
        make(
            "retry.evaluate_on_exit[0].on_exit_code: '1*2'",
            retry=RetryStrategy(1, (EvaluateOnExit("exit", on_exit_code="1*2"),)),  # type: ignore[arg-type]
        ),
        make(
            "retry.evaluate_on_exit[0].on_reason: 1.5",
            retry=RetryStrategy(1, (EvaluateOnExit("exit", on_reason=1.5),)),  # type: ignore[arg-type]
        ),
        make(
            "evaluate_on_exit: 6",
            QuotaExceeded,
            retry={
                "attempts": 1,
                "evaluate_on_exit": [{"action": "exit", "on_exit_code": "1"}] * 6,
            },
        ),
        make("timeout: 0", timeout=0),
        make("timeout: -0.5", timeout=-0.5),
        make("timeout: '60'", timeout="60"),
        make("timeout: nan", timeout=math.nan),
        make("timeout: 1e+300", timeout=1e300),
        make("timeout:", timeout=HUGE),
        make("workdir: 'relative'", workdir="relative"),
        make("workdir: 5", workdir=5),
        make("workdir: '/a\\x00b'", workdir="/a\0b"),
        make("workdir:", workdir="/" + SURROGATE),
        make("scratch: 1", scratch=1),
        make("scheduling_priority: -1", scheduling_priority=-1),
        make("scheduling_priority: 10000", scheduling_priority=10_000),
        make("scheduling_priority: '1'", scheduling_priority="1"),
        make("max_running: 0", max_running=0),
        make("max_running: 1.5", max_running=1.5),
        make("max_failures: 0", max_failures=0),
        make("max_failures: '1'", max_failures="1"),
        make("on_max_failures: 'stop'", on_max_failures="stop"),
        make("checkpoint_exit_codes: 85", checkpoint_exit_codes=85),
        make("checkpoint_exit_codes: '85'", checkpoint_exit_codes="85"),
        make("checkpoint_exit_codes[1]: '85'", checkpoint_exit_codes=[1, "85"]),
        make("checkpoint_exit_codes[0]: 0", checkpoint_exit_codes=[0]),
        make("max_checkpoints: 0", checkpoint_exit_codes=[1], max_checkpoints=0),
        make("name: 'a b'", name="a b"),
        make("name: ''", name=""),
        make("name: 'aaa", name="a" * 129),
        make("name: 5", name=5),
        make("name: None", name=None),
        make("name:", name=SURROGATE),
        make("quota", QuotaExceeded, environment={"A": "x" * 40_000}),
    ]


CASES: list[Case] = [
    *body(submits),
    *body(registers),
    submits("job queue 'none'", NotFound, queue="none"),
    submits("queue: 5", queue=5),
    submits("queue: None", queue=None),
    submits("'stopped'", Conflict, queue="stopped"),
    submits("job definition 'none'", NotFound, definition="none"),
    submits("job definition 'd:9'", NotFound, definition="d:9"),
    submits("job definition 'old:1'", NotFound, definition="old:1"),
    submits("job definition 'old'", NotFound, definition="old"),
    submits("definition: 'd:x'", definition="d:x"),
    submits("definition: 'd:'", definition="d:"),
    submits("definition: 'd:999", definition="d:" + "9" * 5000),
    submits("definition: 5", definition=5),
    submits("parameters.name: None", definition="ref", command=None),
    submits("array_size: 1 ", array_size=1),
    submits("array_size: 0", array_size=0),
    submits("array_size: -3", array_size=-3),
    submits("array_size: 2.0", array_size=2.0),
    submits("array_size: True", array_size=True),
    submits("array_size: 10001", QuotaExceeded, array_size=10_001),
    submits("array_size:", array_size=HUGE),
    submits("depends_on: 'running'", depends_on="running"),
    submits("depends_on: 7", depends_on=7),
    (lambda k: with_job(k, "array", lambda job: submit(k, depends_on=job)), InvalidValue, "depends_on: <JobHandle"),
    submits("depends_on: {'job': 'running'}", depends_on={"job": "running"}),
    submits("depends_on[0]: 7", depends_on=[7]),
    submits("depends_on[0].on: 'end'", depends_on=[sequential(on="end")], array_size=2),
    submits("depends_on[0].on: 'failure'", depends_on=[sequential(on="failure")], array_size=2),
    submits("depends_on[0].on: 7", depends_on=[n_to_n("running", on=cast("Any", 7))], array_size=2),
    submits("depends_on[0].on: 'any'", depends_on=[{"job": "running", "on": "any"}]),
    submits("depends_on[0]: None", depends_on=[after_any(None)]),
    submits("job 'nobody'", NotFound, depends_on=[after_failure("nobody")]),
    submits("depends_on[0]: None", depends_on=[None]),
    submits("depends_on[0]: b'x'", depends_on=[b"x"]),
    submits("job 'nobody'", NotFound, depends_on=["nobody"]),
    submits(UNKNOWN, NotFound, depends_on=[UNKNOWN]),
    submits("2 unfinished jobs", Conflict, depends_on=["twin"]),
    submits("depends_on[0]: 'kind'", depends_on=[{"job": "running", "kind": "N_TO_N"}]),
    submits("depends_on[0].type: 'SOON'", depends_on=[{"job": "running", "type": "SOON"}]),
    submits("depends_on[0].type: []", depends_on=[{"job": "running", "type": []}]),
    submits("depends_on[0]: 'SEQUENTIAL'", depends_on=[SEQUENTIAL]),
    submits("depends_on[0]: 'N_TO_N'", depends_on=[n_to_n("array")]),
    submits("depends_on[0]:", array_size=4, depends_on=[n_to_n("array")]),
    submits("depends_on[0]:", array_size=3, depends_on=[n_to_n("running")]),
    submits("depends_on[0]: <odd>", array_size=3, depends_on=[n_to_n(Odd())]),
    submits("depends_on: 21", QuotaExceeded, depends_on=["running"] * 21),
    submits("client_token: ''", client_token=""),
    submits("client_token: 'ttt", client_token="t" * 65),
    submits("client_token: 5", client_token=5),
    submits("client_token:", client_token=SURROGATE),
    registers("exist_ok: 'yes'", exist_ok="yes"),
    registers("command", Conflict, name="d", command=["y"], exist_ok=True),
    registers("vcpus", Conflict, name="d", vcpus=2, exist_ok=True),
    creates("name: 'a/b'", name="a/b"),
    creates("name: ''", name=""),
    creates("name: 5", name=5),
    creates("backend: 'none' is not allowed; a backend is one of b, ", backend="none"),
    creates("backend: None", backend=None),
    creates("max_vcpus: 0", max_vcpus=0),
    creates("max_vcpus: -1", max_vcpus=-1),
    creates("max_vcpus: 'all'", max_vcpus="all"),
    creates("max_vcpus:", max_vcpus=HUGE),
    creates("min_vcpus: 3", min_vcpus=3, max_vcpus=2),
    creates("min_vcpus: -1", min_vcpus=-1),
    creates("managed: 1", managed=1),
    creates("state: 'enabled'", state="enabled"),
    creates("state: ['ENABLED']", state=["ENABLED"]),
    creates("options: 5", options=5),
    creates("options: 0", options=0),
    creates("options.colour: 'red' is not allowed; no such option (backend", options={"colour": "red"}),
    creates("options.memory: 'much'", options={"memory": "much"}),
    creates("options.1: 2", options={1: 2}),
    creates("options: {'memory': <odd>}", options={"memory": Odd()}),
    creates("options.memory: -5", options={"memory": -5}),
    creates("options.gpus: [0, -1]", options={"gpus": [0, -1]}),
    creates("tags: 5", tags=5),
    creates("exist_ok: 1", exist_ok=1),
    creates("'b': Object already exists", Conflict, name="b"),
    creates("exists with another max_vcpus", Conflict, name="b", backend="b", max_vcpus=9, exist_ok=True),
    queues("name: 'a b'", name="a b"),
    queues("priority: '1'", priority="1"),
    queues("priority: -1", priority=-1),
    queues("priority: 1.5", priority=1.5),
    queues("priority: 1000001", priority=1_000_001),
    queues("priority:", priority=HUGE),
    queues("compute_environments: 'b'", compute_environments="b"),
    queues("compute_environments: 7", compute_environments=7),
    queues("compute_environments[0]: 7", compute_environments=[7]),
    queues("compute_environments", compute_environments=["b", "b"]),
    queues("compute_environments", QuotaExceeded, compute_environments=[]),
    queues("compute_environments", QuotaExceeded, compute_environments=["b", "c", "d", "e"]),
    queues("compute environment 'none'", NotFound, compute_environments=["none"]),
    queues("state: 5", state=5),
    queues("tags.a: 5", tags={"a": 5}),
    queues("exist_ok: None", exist_ok=None),
    queues("job queue 'q': Object already exists", Conflict, name="q"),
    queues("exists with another priority", Conflict, name="q", priority=5, exist_ok=True),
    (lambda k: k.update_job_queue("none", priority=1), NotFound, "job queue 'none'"),
    (lambda k: k.update_job_queue(5), InvalidValue, "name: 5"),
    (lambda k: k.update_job_queue("q", priority="x"), InvalidValue, "priority: 'x'"),
    (lambda k: k.update_job_queue("q", priority=-1), InvalidValue, "priority: -1"),
    (lambda k: k.update_job_queue("q", state="OFF"), InvalidValue, "state: 'OFF'"),
    (lambda k: k.update_job_queue("q", compute_environments="b"), InvalidValue, "compute_environments: 'b'"),
    (lambda k: k.update_job_queue("q", compute_environments=["none"]), NotFound, "compute environment 'none'"),
    (lambda k: k.delete_job_queue("q"), Conflict, "DISABLED first"),
    (lambda k: k.delete_job_queue("none"), NotFound, "job queue 'none'"),
    (lambda k: k.delete_job_queue(None), InvalidValue, "name: None"),
    (lambda k: k.describe_job_queues(["none"]), NotFound, "job queue 'none'"),
    (lambda k: k.describe_job_queues("q"), InvalidValue, "names: 'q'"),
    (lambda k: k.describe_job_queues([5]), InvalidValue, "names[0]: 5"),
    (lambda k: k.update_compute_environment("none"), NotFound, "compute environment 'none'"),
    (lambda k: k.update_compute_environment([]), InvalidValue, "name: []"),
    (lambda k: k.update_compute_environment("b", state=1), InvalidValue, "state: 1"),
    (lambda k: k.update_compute_environment("b", max_vcpus=-2), InvalidValue, "max_vcpus: -2"),
    (lambda k: k.update_compute_environment("b", min_vcpus=5), InvalidValue, "min_vcpus: 5"),
    (lambda k: k.update_compute_environment("b", max_vcpus="x"), InvalidValue, "max_vcpus: 'x'"),
    (lambda k: k.update_compute_environment("b", options={"x": 1}), InvalidValue, "options.x: 1"),
    (lambda k: k.update_compute_environment("b", options=[]), InvalidValue, "options: []"),
    (lambda k: k.delete_compute_environment("b"), Conflict, "DISABLED first"),
    (lambda k: k.delete_compute_environment("none"), NotFound, "compute environment 'none'"),
    (lambda k: k.delete_compute_environment(5), InvalidValue, "name: 5"),
    (lambda k: k.describe_compute_environments(["none"]), NotFound, "compute environment 'none'"),
    (lambda k: k.describe_compute_environments("b"), InvalidValue, "names: 'b'"),
    (lambda k: k.deregister_job_definition("d"), InvalidValue, "definition: 'd'"),
    (lambda k: k.deregister_job_definition("d:x"), InvalidValue, "definition: 'd:x'"),
    (lambda k: k.deregister_job_definition("d:" + "9" * 5000), InvalidValue, "definition: 'd:999"),
    (lambda k: k.deregister_job_definition("d:9"), NotFound, "job definition 'd:9'"),
    (lambda k: k.deregister_job_definition("none:1"), NotFound, "job definition 'none:1'"),
    (lambda k: k.deregister_job_definition(5), InvalidValue, "definition: 5"),
    (lambda k: k.describe_job_definitions("none"), NotFound, "job definition 'none'"),
    (lambda k: k.describe_job_definitions(5), InvalidValue, "name: 5"),
    (lambda k: k.describe_job_definitions([]), InvalidValue, "name: []"),
    (lambda k: k.describe_job_definitions(active="yes"), InvalidValue, "active: 'yes'"),
    (lambda k: k.describe_jobs(5), InvalidValue, "jobs: 5"),
    (lambda k: k.describe_jobs("running"), InvalidValue, "jobs: 'running'"),
    (lambda k: with_job(k, "running", k.describe_jobs), InvalidValue, "jobs: "),
    (lambda k: k.describe_jobs(["running", 5]), InvalidValue, "5"),
    (lambda k: k.describe_jobs(["running", "nobody"]), NotFound, "job 'nobody'"),
    (lambda k: first(k.list_jobs(queue="none")), NotFound, "job queue 'none'"),
    (lambda k: first(k.list_jobs(queue=5)), InvalidValue, "queue: 5"),
    (lambda k: first(k.list_jobs(status="DONE")), InvalidValue, "status: 'DONE'"),
    (lambda k: first(k.list_jobs(status=5)), InvalidValue, "status: 5"),
    (lambda k: first(k.list_jobs(status=[[]])), InvalidValue, "status: []"),
    (lambda k: first(k.list_jobs(name=5)), InvalidValue, "name: 5"),
    (lambda k: first(k.list_jobs(parent="running")), InvalidValue, "parent: "),
    (lambda k: first(k.list_jobs(parent=5)), InvalidValue, ": 5"),
    (lambda k: first(k.list_jobs(parent="nobody")), NotFound, "job 'nobody'"),
    (lambda k: k.cancel_job("running", ""), InvalidValue, "reason: ''"),
    (lambda k: k.cancel_job("running", None), InvalidValue, "reason: None"),
    (lambda k: k.cancel_job("running", "x" * 1025), QuotaExceeded, "1024"),
    (lambda k: k.terminate_job("running", SURROGATE), InvalidValue, "reason:"),
    (lambda k: k.terminate_job("running", 5), InvalidValue, "reason: 5"),
    (lambda k: first(k.logs("running", follow="yes")), InvalidValue, "follow: 'yes'"),
    (lambda k: first(k.logs("running", attempt="1")), InvalidValue, "attempt: '1'"),
    (lambda k: first(k.logs("running", attempt=2)), NotFound, "attempt"),
    (lambda k: k.read_logs("running", attempt=0), NotFound, "attempt"),
    (lambda k: k.read_logs("running", attempt=-1), NotFound, "attempt"),
    (lambda k: k.read_logs("running", attempt=HUGE), RequestError, "attempt"),
    (lambda k: k.read_logs("array"), InvalidValue, "an array's logs are its children's"),
    (lambda k: k.run([]), InvalidValue, "command: []"),
    (lambda k: k.run("echo hi"), InvalidValue, "command: 'echo hi'"),
    (lambda k: k.run(["true"], timeout=-1), InvalidValue, "timeout: -1"),
    (lambda k: with_job(k, "array", lambda job: soon(lambda: job["0"])), InvalidValue, "index: '0'"),
    (lambda k: with_job(k, "array", lambda job: soon(lambda: job[True])), InvalidValue, "index: True"),
    (lambda k: with_job(k, "array", lambda job: soon(lambda: job[3])), NotFound, "indexes are 0 to 2"),
    (lambda k: with_job(k, "array", lambda job: soon(lambda: job[-1])), NotFound, "indexes are 0 to 2"),
    (lambda k: with_job(k, "running", lambda job: soon(lambda: job[0])), NotFound, "not an array"),
    (lambda k: soon(lambda: k.events(after=5)), InvalidValue, "after: 5"),
    (lambda k: soon(lambda: k.events(after=(1,))), InvalidValue, "after: (1,)"),
    (lambda k: soon(lambda: k.events(after=(1, "2"))), InvalidValue, "after: (1, '2')"),
    (lambda k: soon(lambda: k.events(after=(1, -1))), InvalidValue, "after: (1, -1)"),
    (lambda k: soon(lambda: k.events(after=(1, 10**6))), InvalidValue, "the newest event is"),
]  # fmt: skip

for _call in ("describe_job", "wait", "explain", "read_logs"):
    for _job, _kind, _text in (
        ("nobody", NotFound, "job 'nobody'"),
        (UNKNOWN, NotFound, UNKNOWN),
        ("", InvalidValue, "job: ''"),
        (5, InvalidValue, "job: 5"),
        (None, InvalidValue, "job: None"),
        (b"x", InvalidValue, "job: b'x'"),
        ("twin", Conflict, "2 unfinished jobs have this name"),
        (SURROGATE, RequestError, ""),
    ):
        CASES.append((lambda k, c=_call, j=_job: getattr(k, c)(j), _kind, _text))  # type: ignore[misc]
for _call in ("cancel_job", "terminate_job"):
    for _job, _kind, _text in (
        ("nobody", NotFound, "'nobody'"),
        (5, InvalidValue, "job: 5"),
        ("twin", Conflict, "twin"),
    ):
        CASES.append((lambda k, c=_call, j=_job: getattr(k, c)(j, "why"), _kind, _text))  # type: ignore[misc]


async def first(stream: Any) -> Any:
    return await anext(aiter(stream))


async def soon(call: Callable[[], Any]) -> Any:
    return call()


async def with_job(kernel: Any, name: str, call: Callable[[Any], Awaitable[Any]]) -> Any:
    return await call(await kernel.job(name))


@pytest.mark.asyncio
async def test_what_a_call_does_not_take_is_refused_by_name_and_changes_nothing() -> None:
    wrong = []
    async with busy_kernel() as kernel:
        before = snapshot(kernel)
        for n, (call, kind, text) in enumerate(CASES):
            try:
                result = await call(kernel)
                wrong.append(f"{n}: not refused, where {text!r} was to be said: {result!r}"[:300])
            except kind as e:
                if text not in str(e):
                    wrong.append(f"{n}: {text!r} is not in {e}"[:300])
                if len(str(e)) > 1000:
                    wrong.append(f"{n}: an error of {len(str(e))} characters")
            except Exception as e:
                wrong.append(f"{n}: {text!r}: {type(e).__name__}: {e}"[:300])
            if live(kernel).failure is not None:
                raise AssertionError(f"{n}, {text!r}, stopped the kernel: {live(kernel).failure!r}")
            await turns(3)
            if snapshot(kernel)[0] != before[0] or snapshot(kernel)[1] != before[1]:
                wrong.append(f"{n}: {text!r} has changed something")
                before = snapshot(kernel)
        assert not wrong, "\n".join(wrong)


KERNEL_CASES: list[tuple[dict[str, Any], str]] = [
    ({"path": 5}, "path: 5"),
    ({"path": b"x"}, "path: b'x'"),
    ({"path": ""}, "path: ''"),
    ({"path": "a\0b"}, "path: 'a\\x00b'"),
    ({"backends": 5}, "backends: 5"),
    ({"backends": {"x": 5}}, "backends.x: 5"),
    ({"backends": {5: NullBackend}}, "backends.5"),
    ({"quotas": 5}, "quotas: 5"),
    ({"quotas": Quotas(array_size_max="x")}, "quotas.array_size_max: 'x'"),  # type: ignore[arg-type]
    ({"quotas": Quotas(tags_max=-1)}, "quotas.tags_max: -1"),
    ({"on_close": "now"}, "on_close: 'now'"),
    ({"on_close": []}, "on_close: []"),
    ({"on_close": "detach"}, "on_close: 'detach'"),
    ({"runtime_dir": 5}, "runtime_dir: 5"),
]


@pytest.mark.parametrize(("arguments", "text"), KERNEL_CASES, ids=[text for _, text in KERNEL_CASES])
def test_a_kernel_is_not_made_from_what_it_does_not_take(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        Kernel(**arguments)
    assert text in str(refused.value)


@pytest.mark.asyncio
async def test_quotas_bound_what_there_can_be() -> None:
    quotas = Quotas(job_queues_max=1, compute_environments_max=1, unfinished_jobs_max=2)
    async with kernel_on(ManualBackend(), quotas=quotas) as kernel:
        await submit(kernel)
        await submit(kernel)
        before = snapshot(kernel)
        for call, quota in (
            (lambda: submit(kernel), "unfinished_jobs_max"),
            (lambda: kernel.create_job_queue("r", priority=1, compute_environments=["b"]), "job_queues_max"),
            (lambda: kernel.create_compute_environment("c", backend="b"), "compute_environments_max"),
        ):
            with pytest.raises(QuotaExceeded, match=quota):
                await call()
        assert snapshot(kernel)[1] == before[1]
