"""A kernel in another process has the same methods, with the same signatures."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from anybatch import Kernel, RemoteKernel
from anybatch.kernel.control.surface import methods


def public(kind: type) -> dict[str, Any]:
    return {name: found for name, found in inspect.getmembers(kind) if not name.startswith("_")}


def test_both_have_the_same_public_names() -> None:
    assert set(public(RemoteKernel)) == set(public(Kernel))


@pytest.mark.parametrize("name", [name for name, found in public(Kernel).items() if inspect.isfunction(found)])
def test_both_have_the_same_signature_and_are_used_in_the_same_way(name: str) -> None:
    here, there = getattr(Kernel, name), getattr(RemoteKernel, name)
    assert inspect.signature(there) == inspect.signature(here)
    assert inspect.getdoc(there) == inspect.getdoc(here)
    for kind in (inspect.iscoroutinefunction, inspect.isasyncgenfunction):
        assert kind(there) == kind(here)


@pytest.mark.parametrize("name", [name for name, found in public(Kernel).items() if not inspect.isfunction(found)])
def test_the_rest_are_properties_of_both(name: str) -> None:
    assert isinstance(getattr(Kernel, name), property)
    assert isinstance(getattr(RemoteKernel, name), property)
    assert getattr(RemoteKernel, name) is not getattr(Kernel, name)


def test_every_method_but_those_made_of_others_goes_to_the_other_process() -> None:
    same = {name for name, found in public(Kernel).items() if found is getattr(RemoteKernel, name)}
    assert same == {"acting_as", "read_logs"}


def test_what_each_gives_is_known() -> None:
    for method in methods(Kernel).values():
        assert method.gives is not None or method.kind == "call"


def test_a_method_that_cannot_be_called_from_elsewhere_is_noticed() -> None:
    class Later(Kernel):
        def peek(self) -> int:
            return 1

    with pytest.raises(TypeError, match="peek is neither a coroutine function"):
        methods(Later)
