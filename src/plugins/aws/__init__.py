"""The AWS Batch HTTP API on a kernel, for clients of AWS Batch as they are (docs/aws.md). Needs `anybatch[aws]`."""

from .certificate import Certificate
from .environments import status_reason
from .front_end import DEFAULT_BIND, AwsFrontEnd
from .identity import Identity
from .role_sources import RoleSource
from .settings import AwsSettings, BackendChoice

__all__ = [
    "DEFAULT_BIND",
    "AwsFrontEnd",
    "AwsSettings",
    "BackendChoice",
    "Certificate",
    "Identity",
    "RoleSource",
    "status_reason",
]
