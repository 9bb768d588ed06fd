"""anybatch: AWS Batch's model as an asyncio microkernel that you embed.

    async with anybatch.Kernel("batch.db") as kernel:
        result = await kernel.run(["echo", "hello"])

Everything that is public is named here. Plugins import `anybatch.kernel.backend`; tests of users and of
plugin authors import `anybatch.testing`.
"""

from anybatch.backends.inline import InlineAttempt, InlineBackend
from anybatch.kernel.apply import Applied
from anybatch.kernel.arguments import SEQUENTIAL, after_any, after_failure, n_to_n, sequential
from anybatch.kernel.audit import AuditRecord
from anybatch.kernel.config import Config, load_config
from anybatch.kernel.control.client import RemoteKernel, connect
from anybatch.kernel.core.container import ContainerSpec
from anybatch.kernel.core.errors import (
    AnyBatchError,
    BackendError,
    ConfigError,
    Conflict,
    ControlError,
    EventsTrimmed,
    InvalidValue,
    JobFailed,
    JournalDamaged,
    JournalError,
    JournalLocked,
    KernelBug,
    KernelClosed,
    Mistake,
    NotFound,
    NotRunning,
    PluginError,
    QuotaExceeded,
    RequestError,
)
from anybatch.kernel.core.explain import Code, Reason
from anybatch.kernel.core.model import (
    Action,
    DependencyType,
    EvaluateOnExit,
    FailureClass,
    On,
    OnMaxFailures,
    Quotas,
    ResourceState,
    ResourceStatus,
    RetryStrategy,
    TaggedKind,
)
from anybatch.kernel.core.states import JobStatus
from anybatch.kernel.handles import JobHandle
from anybatch.kernel.journal_compact import CompactReport
from anybatch.kernel.journal_reader import JournalReader, read_journal
from anybatch.kernel.journal_types import JournalLoss
from anybatch.kernel.kernel import Kernel, RunResult
from anybatch.kernel.registry import PluginInfo, list_plugins
from anybatch.kernel.sink import EventGap, SinkConfig, SinkDetail, SinkError
from anybatch.kernel.stream import EventId, JobEvent
from anybatch.kernel.views import (
    AttemptDetail,
    DefinitionDetail,
    DependencyDetail,
    EnvironmentDetail,
    HostDetail,
    HostState,
    JobDetail,
    JobRerun,
    JobSummary,
    QueueDetail,
)

__all__ = [
    "SEQUENTIAL",
    "Action",
    "AnyBatchError",
    "Applied",
    "AttemptDetail",
    "AuditRecord",
    "BackendError",
    "Code",
    "CompactReport",
    "Config",
    "ConfigError",
    "Conflict",
    "ContainerSpec",
    "ControlError",
    "DefinitionDetail",
    "DependencyDetail",
    "DependencyType",
    "EnvironmentDetail",
    "EvaluateOnExit",
    "EventGap",
    "EventId",
    "EventsTrimmed",
    "FailureClass",
    "HostDetail",
    "HostState",
    "InlineAttempt",
    "InlineBackend",
    "InvalidValue",
    "JobDetail",
    "JobEvent",
    "JobFailed",
    "JobHandle",
    "JobRerun",
    "JobStatus",
    "JobSummary",
    "JournalDamaged",
    "JournalError",
    "JournalLocked",
    "JournalLoss",
    "JournalReader",
    "Kernel",
    "KernelBug",
    "KernelClosed",
    "Mistake",
    "NotFound",
    "NotRunning",
    "On",
    "OnMaxFailures",
    "PluginError",
    "PluginInfo",
    "QueueDetail",
    "QuotaExceeded",
    "Quotas",
    "Reason",
    "RemoteKernel",
    "RequestError",
    "ResourceState",
    "ResourceStatus",
    "RetryStrategy",
    "RunResult",
    "SinkConfig",
    "SinkDetail",
    "SinkError",
    "TaggedKind",
    "after_any",
    "after_failure",
    "connect",
    "list_plugins",
    "load_config",
    "n_to_n",
    "read_journal",
    "sequential",
]
