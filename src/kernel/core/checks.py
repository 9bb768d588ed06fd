"""Checks of values, without the state: each raises with the field, the value and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from .container import check_container, overlaid
from .errors import InvalidValue, QuotaExceeded
from .model import DefinitionBody, EvaluateOnExit, JobSpec, Overrides, Quotas, RetryStrategy

NAME_CHARS_MAX: Final = 128
JOB_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
RESOURCE_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
PLACEHOLDER: Final = re.compile(r"Ref::([A-Za-z0-9_-]+)")
PLACEHOLDER_BEGINS: Final = "Ref::"
PATTERN_CHARS_MAX: Final = 512
HOST_LOST_RETRIES_MAX: Final = 1000
REASON_PATTERN: Final = re.compile(r"[0-9A-Za-z.:\s]*\*?")
CODE_PATTERN: Final = re.compile(r"[0-9]*\*?")
CHILD_ID: Final = re.compile(r"(?P<job>[0-9a-f-]{36}):(?P<index>[0-9]{1,9})")
PRIORITY_MAX: Final = 1_000_000
TAG_KEY_CHARS_MAX: Final = 128
TAG_VALUE_CHARS_MAX: Final = 256
VCPUS_MILLI_MAX: Final = 1_000_000_000
MEMORY_MIB_MAX: Final = 1 << 40
GPUS_MAX: Final = 1024
CHILDREN_MAX: Final = 1 << 31
"""Of a number of children; what an array may have is a quota."""
CHECKPOINTS_MAX: Final = 10_000
"""Of a job or child: an attempt's number is below 65,536, and each earlier one takes 20 bytes."""
TIMEOUT_MS_MAX: Final = 1000 * 86_400 * 36_500
ROLE_CHARS_MAX: Final = 2048
"""As of an ARN of AWS's."""
RESERVED_VARIABLE: Final = "AWS_BATCH"


def check_job_name(field: str, name: object) -> str:
    """A job's name: 1 to 128 letters, digits, `-`, `_`, the first a letter or digit (contract section 8)."""
    if not isinstance(name, str) or not JOB_NAME.fullmatch(name):
        allowed = "a job name is 1 to 128 letters, digits, '-' and '_', the first a letter or digit"
        raise InvalidValue(field, name, allowed)
    return name


def check_resource_name(field: str, name: object) -> str:
    """The name of a definition, queue or environment: 1 to 128 letters, digits, `-` and `_` (JD-1, JQ-1, CE-1)."""
    if not isinstance(name, str) or not RESOURCE_NAME.fullmatch(name):
        raise InvalidValue(field, name, "a name is 1 to 128 letters, digits, '-' and '_'")
    return name


def check_reason(reason: object, quotas: Quotas) -> str:
    """The reason of a cancel or terminate: not empty, at most 1,024 characters (CT-1)."""
    if not isinstance(reason, str) or not reason:
        raise InvalidValue("reason", reason, "a reason is text that is not empty")
    if len(reason) > quotas.reason_chars_max:
        raise QuotaExceeded("reason", reason, f"a reason has at most {quotas.reason_chars_max} characters")
    return reason


def check_retry(strategy: RetryStrategy, quotas: Quotas) -> None:
    """RT-1, EX-1, EX-2, EX-5, EX-7."""
    if not 1 <= strategy.attempts <= quotas.attempts_max:
        raise QuotaExceeded("retry.attempts", strategy.attempts, f"attempts are 1 to {quotas.attempts_max}")
    if not 0 <= strategy.host_lost_retries <= HOST_LOST_RETRIES_MAX:
        allowed = f"host_lost_retries are 0 to {HOST_LOST_RETRIES_MAX}"
        raise InvalidValue("retry.host_lost_retries", strategy.host_lost_retries, allowed)
    entries = strategy.evaluate_on_exit
    if len(entries) > quotas.evaluate_on_exit_max:
        allowed = f"evaluate_on_exit has at most {quotas.evaluate_on_exit_max} entries"
        raise QuotaExceeded("retry.evaluate_on_exit", len(entries), allowed)
    for n, entry in enumerate(entries):
        _check_entry(f"retry.evaluate_on_exit[{n}]", entry)


def _check_entry(field: str, entry: EvaluateOnExit) -> None:
    given = {
        "on_status_reason": (entry.on_status_reason, REASON_PATTERN),
        "on_reason": (entry.on_reason, REASON_PATTERN),
        "on_exit_code": (entry.on_exit_code, CODE_PATTERN),
    }
    if all(pattern is None for pattern, _ in given.values()):
        raise InvalidValue(field, entry, "an entry has at least one of on_status_reason, on_reason, on_exit_code")
    for name, (pattern, allowed) in given.items():
        if pattern is None:
            continue
        if len(pattern) > PATTERN_CHARS_MAX or not allowed.fullmatch(pattern) or not pattern:
            letters = "digits" if name == "on_exit_code" else "letters, digits, '.', ':' and white space"
            text = f"a pattern is 1 to {PATTERN_CHARS_MAX} {letters}, with at most one '*', at its end"
            raise InvalidValue(f"{field}.{name}", pattern, text)


def check_variables(field: str, environment: Mapping[str, str]) -> None:
    """Names of environment variables; AWS_BATCH is reserved (EV-1)."""
    for name, value in environment.items():
        if not name or "=" in name or "\0" in name:
            raise InvalidValue(field, name, "a variable's name is not empty and has neither '=' nor a zero byte")
        if name.startswith(RESERVED_VARIABLE):
            raise InvalidValue(f"{field}.{name}", value, f"names that begin with {RESERVED_VARIABLE} are reserved")
        if "\0" in value:
            raise InvalidValue(f"{field}.{name}", value, "a variable's value has no zero byte")


def check_tags(tags: Mapping[str, str], quotas: Quotas) -> None:
    """Contract section 8."""
    if len(tags) > quotas.tags_max:
        raise QuotaExceeded("tags", len(tags), f"at most {quotas.tags_max} tags")
    for key, value in tags.items():
        if not 1 <= len(key) <= TAG_KEY_CHARS_MAX or key.startswith("aws:"):
            allowed = f"a tag's key has 1 to {TAG_KEY_CHARS_MAX} characters and does not begin with 'aws:'"
            raise InvalidValue("tags", key, allowed)
        if len(value) > TAG_VALUE_CHARS_MAX:
            raise InvalidValue(f"tags.{key}", value, f"a tag's value has at most {TAG_VALUE_CHARS_MAX} characters")


def check_metadata(metadata: Mapping[str, Any], quotas: Quotas) -> None:
    """What somebody keeps with a job, definition, queue or environment: of bounded size."""
    size = len(msgspec.msgpack.encode(metadata)) if metadata else 0
    if size > quotas.metadata_bytes_max:
        allowed = f"metadata has at most {quotas.metadata_bytes_max} bytes (quota metadata_bytes_max)"
        raise QuotaExceeded("metadata", size, allowed)


def check_body(body: DefinitionBody | Overrides, quotas: Quotas) -> None:
    """What a definition, or the overrides of a submit, may say."""
    ranges = (
        ("vcpus", body.vcpus_milli, 1, VCPUS_MILLI_MAX, "vcpus are above 0, in steps of 0.001"),
        ("memory", body.memory_mib, 0, MEMORY_MIB_MAX, "memory is 0 (not counted) or more MiB"),
        ("gpus", body.gpus, 0, GPUS_MAX, f"gpus are 0 to {GPUS_MAX}"),
        ("timeout", body.timeout_ms, 1, TIMEOUT_MS_MAX, "a timeout is above 0 seconds (and at most 100 years)"),
        ("scheduling_priority", body.scheduling_priority, 0, 9999, "a scheduling priority is 0 to 9999"),
        ("max_running", body.max_running, 1, CHILDREN_MAX, "max_running is 1 or more children; None: no cap"),
        ("max_failures", body.max_failures, 1, CHILDREN_MAX, "max_failures is 1 or more children; None: no limit"),
        ("max_checkpoints", body.max_checkpoints, 1, CHECKPOINTS_MAX, f"max_checkpoints is 1 to {CHECKPOINTS_MAX}"),
    )
    for field, value, least, most, allowed in ranges:
        if value is not None and not least <= value <= most:
            raise InvalidValue(field, value, allowed)
    for n, code in enumerate(body.checkpoint_exit_codes or ()):
        if not 1 <= code <= 255:
            raise InvalidValue(f"checkpoint_exit_codes[{n}]", code, "an exit code is 1 to 255; 0 is success")
    if body.script is not None:
        if not body.script.startswith("#!"):
            raise InvalidValue("script", body.script[:60], "a script's first line names its interpreter: '#!...'")
        size = len(body.script.encode())
        if size > quotas.script_bytes_max:
            raise QuotaExceeded("script", size, f"a script has at most {quotas.script_bytes_max} bytes")
    for n, word in enumerate(body.command or ()):
        if "\0" in word:
            raise InvalidValue(f"command[{n}]", word, "an argument has no zero byte")
    if body.command is not None and body.command and body.script is None and not body.command[0]:
        raise InvalidValue("command[0]", "", "the program's name is not empty")
    if body.workdir is not None and not body.workdir.startswith("/"):
        raise InvalidValue("workdir", body.workdir, "a working directory is an absolute path")
    if body.role is not None and not 1 <= len(body.role) <= ROLE_CHARS_MAX:
        raise InvalidValue("role", body.role[:60], f"a role's name has 1 to {ROLE_CHARS_MAX} characters")
    if body.retry is not None:
        check_retry(body.retry, quotas)
    if body.container is not None:
        check_container(body.container)
    check_variables("environment", body.environment)
    check_tags(body.tags, quotas)
    check_metadata(body.metadata, quotas)


def substitute(command: tuple[str, ...], parameters: Mapping[str, str]) -> tuple[str, ...]:
    """Replace every `Ref::name` (PA-2, PA-4), also inside an argument.

    Raises:
        InvalidValue: a name has no value (PA-3).
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in parameters:
            allowed = f"Unable to substitute value. No parameter found for reference {name}"
            raise InvalidValue(f"parameters.{name}", None, allowed)
        return parameters[name]

    if not any(PLACEHOLDER_BEGINS in word for word in command):
        return command
    return tuple(PLACEHOLDER.sub(value, word) for word in command)


def _laid_over(below: Mapping[str, str], above: Mapping[str, str]) -> Mapping[str, str]:
    """Both, `above` first; one of them itself where the other adds nothing, as nobody changes them."""
    if not above:
        return below
    return {**below, **above} if below else above


def merge(body: DefinitionBody, overrides: Overrides, definition: str | None) -> JobSpec:
    """A submit's overrides laid over a definition, with parameters put in (SJ-5, PA-1..PA-6)."""
    parameters = _laid_over(body.parameters, overrides.parameters)
    return JobSpec(
        command=substitute(body.command if overrides.command is None else overrides.command, parameters),
        script=body.script if overrides.script is None else overrides.script,
        environment=_laid_over(body.environment, overrides.environment),
        parameters=parameters,
        vcpus_milli=body.vcpus_milli if overrides.vcpus_milli is None else overrides.vcpus_milli,
        memory_mib=body.memory_mib if overrides.memory_mib is None else overrides.memory_mib,
        gpus=body.gpus if overrides.gpus is None else overrides.gpus,
        retry=body.retry if overrides.retry is None else overrides.retry,
        timeout_ms=body.timeout_ms if overrides.timeout_ms is None else overrides.timeout_ms,
        workdir=body.workdir if overrides.workdir is None else overrides.workdir,
        scratch=body.scratch if overrides.scratch is None else overrides.scratch,
        tags=overrides.tags,
        scheduling_priority=(
            body.scheduling_priority if overrides.scheduling_priority is None else overrides.scheduling_priority
        ),
        definition=definition,
        metadata=overrides.metadata,
        container=overlaid(body.container, overrides.container),
        max_running=body.max_running if overrides.max_running is None else overrides.max_running,
        max_failures=body.max_failures if overrides.max_failures is None else overrides.max_failures,
        on_max_failures=body.on_max_failures if overrides.on_max_failures is None else overrides.on_max_failures,
        role=body.role if overrides.role is None else overrides.role,
        checkpoint_exit_codes=(
            body.checkpoint_exit_codes if overrides.checkpoint_exit_codes is None else overrides.checkpoint_exit_codes
        ),
        max_checkpoints=body.max_checkpoints if overrides.max_checkpoints is None else overrides.max_checkpoints,
    )
