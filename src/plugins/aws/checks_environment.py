"""What AWS refuses of compute environments' resources and updates (contract 7.2, 7.3, 7.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .errors import refused
from .shapes_environment import ComputeResource, ComputeResources, ComputeResourceUpdate, UpdatePolicy

FARGATE: Final = ("FARGATE", "FARGATE_SPOT")
SUBNETS_MAX: Final = 16
SECURITY_GROUPS_MAX: Final = 5
"""Both on Fargate."""
EC2_CONFIGURATIONS_MAX: Final = 2
SCALE_DOWN_MINUTES: Final = (20, 10_080)
EXECUTION_MINUTES_MAX: Final = 7_200
BEST_FIT: Final = "BEST_FIT"
ORDERED: Final = "BEST_FIT_PROGRESSIVE_ORDERED"
INFRASTRUCTURE: Final = (
    "allocationStrategy", "instanceTypes", "bidPercentage", "type", "imageId", "ec2Configuration", "launchTemplate",
    "ec2KeyPair", "updateToLatestImageVersion", "subnets", "securityGroupIds", "placementGroup", "instanceRole", "tags",
)  # fmt: skip
"""Members whose change replaces instances (CE-12)."""


def check_lengths(kind: str, resources: ComputeResources) -> None:
    """Lists and numbers with a bound (7.2)."""
    if kind in FARGATE:
        for member, most in (("subnets", SUBNETS_MAX), ("securityGroupIds", SECURITY_GROUPS_MAX)):
            if len(getattr(resources, member) or ()) > most:
                raise refused(f"{member} has at most {most} entries for Fargate")
    given = resources.ec2Configuration
    if given is not None and not 1 <= len(given) <= EC2_CONFIGURATIONS_MAX:
        raise refused(f"ec2Configuration has 1 to {EC2_CONFIGURATIONS_MAX} entries")
    minutes = None if resources.scalingPolicy is None else resources.scalingPolicy.minScaleDownDelayMinutes
    least, most = SCALE_DOWN_MINUTES
    if minutes is not None and minutes != 0 and not least <= minutes <= most:
        raise refused(f"minScaleDownDelayMinutes must be 0, or between {least} and {most}")


def check_strategy(kind: str, strategy: str | None) -> None:
    """7.3."""
    if strategy is None:
        return
    if strategy.startswith("SPOT_") and kind != "SPOT":
        raise refused(f"allocationStrategy {strategy} is for SPOT compute environments")
    if strategy == ORDERED and kind != "EC2":
        raise refused(f"allocationStrategy {strategy} is for EC2 compute environments")


def check_spot(resources: ComputeResource) -> None:
    """What SPOT needs beside (7.2)."""
    if resources.type != "SPOT" or resources.allocationStrategy not in (None, BEST_FIT):
        return
    if not resources.spotIamFleetRole:
        raise refused("spotIamFleetRole is required with the allocation strategy BEST_FIT.")


def check_infrastructure(there: Mapping[str, Any], asked: ComputeResourceUpdate) -> None:
    """CE-12: what replaces instances needs another strategy than BEST_FIT."""
    kind = asked.type or there.get("type", "EC2")
    if kind in FARGATE or not there:
        return
    changed = [member for member in INFRASTRUCTURE if getattr(asked, member) not in (None, False, there.get(member))]
    if changed and there.get("allocationStrategy", BEST_FIT) == BEST_FIT:
        raise refused(
            f"{changed[0]} can not be updated: the allocation strategy of the compute environment is BEST_FIT"
        )
    check_strategy(kind, asked.allocationStrategy or there.get("allocationStrategy"))


def check_update_policy(policy: UpdatePolicy | None) -> None:
    """CE-13."""
    minutes = None if policy is None else policy.jobExecutionTimeoutMinutes
    if minutes is not None and not 1 <= minutes <= EXECUTION_MINUTES_MAX:
        raise refused(f"jobExecutionTimeoutMinutes must be between 1 and {EXECUTION_MINUTES_MAX}")


def updated(there: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The resources that result. Empty texts clear; empty lists do on EC2, and change nothing on Fargate (CE-14)."""
    found = {**there, **asked}
    found.pop("updateToLatestImageVersion", None)
    for member in ("imageId", "ec2KeyPair"):
        if asked.get(member) == "":
            del found[member]
    template = asked.get("launchTemplate")
    if template is not None and "" in (template.get("launchTemplateId"), template.get("launchTemplateName")):
        del found["launchTemplate"]
    if there.get("type") in FARGATE:
        for member in ("subnets", "securityGroupIds"):
            if asked.get(member) == [] and member in there:
                found[member] = there[member]
    return found
