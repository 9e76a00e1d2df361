"""``docs/reference/testing.md`` has every public name of ``asyncserver.testing``, with its arguments."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

from asyncserver import pytest_plugin, testing
from asyncserver.testing import certificates, faults
from tests.test_docs import column, table

PAGE = "reference/testing.md"


def arguments(function: Any) -> str:
    """As the page has them: names and defaults, without annotations."""
    parts: list[str] = []
    starred = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            starred = True
        elif parameter.kind is parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        parts.append(f"{stars}{parameter.name}{default}")
    return ", ".join(parts)


def members(cls: type) -> Iterator[tuple[str, str]]:
    """The public methods and attributes of the class, with arguments."""
    for base in reversed(cls.__mro__):
        for name in re.findall(r"self\.([a-z]\w*)(?:: [^=\n]+)? = ", source_of(base)):
            yield name, ""
        for name, value in vars(base).items():
            if not name.startswith("_") and base.__module__.startswith("asyncserver."):
                function = getattr(value, "__func__", value)
                yield name, f"({arguments(function)})" if inspect.isfunction(function) else ""


def source_of(cls: type) -> str:
    return inspect.getsource(cls) if cls.__module__.startswith("asyncserver.") else ""


def rows(heading: str) -> dict[str, str]:
    """The first and the second column."""
    return {name: given for name, given, *_ in table(PAGE, heading)}


def test_every_public_name() -> None:
    assert sorted(column(PAGE, "All names")) == sorted(testing.__all__)


@pytest.mark.parametrize(
    ("heading", "module", "names"),
    [
        ("Servers", testing, ("serving", "serving_datagrams", "serving_in_thread")),
        ("Streams", testing, ("memory_stream_pair", "check_stream")),
        ("Leaks and limits", testing, ("leak_check", "task_leak_check", "exhausted_descriptors")),
        ("Faults of peers of stream servers", faults, tuple(faults.FAULTS)),
        ("Faults of peers of datagram servers", faults, tuple(faults.DATAGRAM_FAULTS)),
        ("All faults", faults, ("check_survival",)),
        ("Certificates", certificates, ("authority", "default_authority")),
    ],
)
def test_every_function_has_its_arguments(heading: str, module: Any, names: tuple[str, ...]) -> None:
    assert rows(heading) == {name: arguments(getattr(module, name)) for name in names}


@pytest.mark.parametrize(
    "cls",
    [testing.Client, testing.TLSClient, testing.DatagramClient, certificates.Authority],
    ids=lambda cls: cls.__name__,
)
def test_every_member_has_its_arguments(cls: type) -> None:
    found = rows(cls.__name__)
    inherited = rows("Client") if cls is testing.TLSClient else {}
    expected = dict(members(cls))
    assert found == {
        name: given for name, given in expected.items() if name in found or name not in inherited
    }


def test_every_name_of_the_faults() -> None:
    documented = {*column(PAGE, "All faults"), *faults.FAULTS, *faults.DATAGRAM_FAULTS}
    assert documented | {"FAULTS", "DATAGRAM_FAULTS", "Fault"} == set(faults.__all__)


def test_every_fixture() -> None:
    fixtures = {name for name in pytest_plugin.__all__ if name.islower()}
    assert set(column(PAGE, "Fixtures")) == fixtures
