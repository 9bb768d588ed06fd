"""ARNs: made from names and ids, and taken apart again (contract section 11, W-3)."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from .errors import refused

PARTITION: Final = "aws"
JOB_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?::(?:0|[1-9][0-9]{0,8}))?")
NODE_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}#[0-9]{1,4}")


class Place(NamedTuple):
    """Whose resources these are: they stand in every ARN."""

    account: str
    region: str

    def arn(self, kind: str, name: str, service: str = "batch") -> str:
        """Of a thing of the given kind."""
        return f"arn:{PARTITION}:{service}:{self.region}:{self.account}:{kind}/{name}"


class Named(NamedTuple):
    """What an ARN names."""

    kind: str
    name: str


def parse_arn(arn: str) -> Named:
    """The kind and the name in an ARN of AWS Batch.

    Raises:
        ApiError: it is none.
    """
    parts = arn.split(":", 5)
    if len(parts) != 6 or parts[0] != "arn" or parts[2] != "batch" or "/" not in parts[5]:
        raise refused(f"Invalid ARN: {arn[:200]}")
    kind, _, name = parts[5].partition("/")
    return Named(kind, name)


def resource_name(kind: str, given: str) -> str:
    """The name of a queue, environment or definition that is given by its name or its ARN."""
    if not given.startswith("arn:"):
        return given
    named = parse_arn(given)
    if named.kind != kind:
        raise refused(f"{given[:200]} is not the ARN of a {kind}")
    return named.name


def job_id(given: str) -> str:
    """The id in a job's ARN, or the id itself."""
    return resource_name("job", given)
