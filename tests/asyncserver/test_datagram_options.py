from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from asyncserver.datagram_options import DatagramOptions, MulticastGroup, interface_family
from asyncserver.errors import OptionError

MDNS = MulticastGroup("224.0.0.251")


def test_defaults() -> None:
    assert DatagramOptions() == DatagramOptions(
        receive_buffer=4_194_304,
        send_buffer=None,
        reuse_address=False,
        reuse_port=False,
        broadcast=False,
        groups=(),
        multicast_loop=True,
        multicast_ttl=1,
        multicast_interface=None,
        timestamps=True,
    )


@pytest.mark.parametrize(
    "options",
    [
        {"receive_buffer": None, "send_buffer": None},
        {"receive_buffer": 1, "send_buffer": 2**30 - 1},
        {"multicast_ttl": 0},
        {"multicast_ttl": 255},
        {"multicast_interface": "eth0"},
        {"multicast_interface": 1},
        {"multicast_interface": "10.0.0.1"},
        {"multicast_interface": "fd00::1"},
        {"groups": (MDNS, MulticastGroup("224.0.0.251", "eth0"))},
    ],
)
def test_what_is_in_range_is_taken(options: dict[str, Any]) -> None:
    made = DatagramOptions(**options)
    assert {name: getattr(made, name) for name in options} == options
    assert pickle.loads(pickle.dumps(made)) == made


WRONG: list[tuple[str, object, str]] = [
    ("receive_buffer", 0, "must be 1 to"),
    ("receive_buffer", 2**30, "must be 1 to"),
    ("receive_buffer", True, "must be a whole number"),
    ("send_buffer", -1, "must be 1 to"),
    ("send_buffer", 1.5, "must be a whole number"),
    ("reuse_address", 1, "must be True or False"),
    ("reuse_port", None, "must be True or False"),
    ("broadcast", "yes", "must be True or False"),
    ("multicast_loop", 0, "must be True or False"),
    ("timestamps", None, "must be True or False"),
    ("multicast_ttl", -1, "must be 0 to 255"),
    ("multicast_ttl", 256, "must be 0 to 255"),
    ("multicast_ttl", None, "must be a whole number"),
    ("multicast_interface", "", "is not the name of an interface"),
    ("multicast_interface", "a b", "is not the name of an interface"),
    ("multicast_interface", "a/b", "is not the name of an interface"),
    ("multicast_interface", 0, "must be 1 to"),
    ("multicast_interface", True, "must be the name, the index or an address"),
    ("multicast_interface", 1.0, "must be the name, the index or an address"),
    ("multicast_interface", "0.0.0.0", "is not the address of an interface"),
    ("multicast_interface", "239.1.2.3", "is not the address of an interface"),
    ("multicast_interface", "fe80::1%eth0", "is not the address of an interface"),
    ("groups", "239.1.2.3", "must be a tuple of MulticastGroup"),
    ("groups", MDNS, "must be a tuple of MulticastGroup"),
    ("groups", None, "must be a tuple of MulticastGroup"),
]


@pytest.mark.parametrize(("option", "value", "reason"), WRONG)
def test_wrong_values_are_errors_that_name_option_and_value(option: str, value: object, reason: str) -> None:
    with pytest.raises(OptionError) as caught:
        DatagramOptions(**{option: value})  # type: ignore[arg-type]
    assert (caught.value.option, caught.value.value) == (option, value)
    assert reason in caught.value.reason


def test_groups() -> None:
    assert DatagramOptions(groups=[MDNS]).groups == (MDNS,)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"groups='239.1.2.3': .* MulticastGroup.parse takes text"):
        DatagramOptions(groups=("239.1.2.3",))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"groups='224.0.0.251': is given twice"):
        DatagramOptions(groups=(MDNS, MulticastGroup("224.0.0.251")))


def test_options_are_values() -> None:
    assert DatagramOptions(multicast_interface="2").multicast_interface == 2
    with pytest.raises(FrozenInstanceError):
        DatagramOptions().broadcast = True  # type: ignore[misc]


# -- groups ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("239.1.2.3", MulticastGroup("239.1.2.3")),
        ("239.1.2.3%lo", MulticastGroup("239.1.2.3", "lo")),
        ("239.1.2.3%2", MulticastGroup("239.1.2.3", 2)),
        ("239.1.2.3%127.0.0.1", MulticastGroup("239.1.2.3", "127.0.0.1")),
        ("10.0.0.7@232.1.2.3%eth0", MulticastGroup("232.1.2.3", "eth0", "10.0.0.7")),
        ("10.0.0.7@232.1.2.3", MulticastGroup("232.1.2.3", source="10.0.0.7")),
        ("ff02::fb%eth0", MulticastGroup("ff02::fb", "eth0")),
        ("ff02::fb%veth0@if5", MulticastGroup("ff02::fb", "veth0@if5")),
        ("ff02::fb%fe80::1", MulticastGroup("ff02::fb", "fe80::1")),
        ("fd00::7@ff3e::1%eth0", MulticastGroup("ff3e::1", "eth0", "fd00::7")),
    ],
)
def test_group_as_text_and_back(text: str, group: MulticastGroup) -> None:
    assert MulticastGroup.parse(text) == group
    assert str(group) == text
    assert pickle.loads(pickle.dumps(group)) == group
    assert group.version == (6 if "::" in group.group else 4)


def test_group_in_normal_form() -> None:
    group = MulticastGroup("FF02:0:0::FB", "7", "FD00:0::1")
    assert group == MulticastGroup("ff02::fb", 7, "fd00::1")
    assert hash(group) == hash(MulticastGroup("ff02::fb", 7, "fd00::1"))


@pytest.mark.parametrize(
    ("make", "option", "value", "reason"),
    [
        (lambda: MulticastGroup("10.0.0.1"), "group", "10.0.0.1", "is not a multicast address"),
        (lambda: MulticastGroup("fd00::1"), "group", "fd00::1", "is not a multicast address"),
        (lambda: MulticastGroup("nonsense"), "group", "nonsense", "is not an IP address"),
        (lambda: MulticastGroup(""), "group", "", "is not an IP address"),
        (lambda: MulticastGroup(None), "group", None, "must be an IP address, as a string"),  # type: ignore[arg-type]
        (lambda: MulticastGroup("ff02::1%lo"), "group", "ff02::1%lo", "MulticastGroup.parse takes both"),
        (lambda: MulticastGroup("239.1.2.3", ""), "interface", "", "is not the name"),
        (lambda: MulticastGroup("239.1.2.3", -1), "interface", -1, "must be 1 to"),
        (lambda: MulticastGroup("239.1.2.3", "fe80::1"), "interface", "fe80::1", "the group is of IPv4"),
        (lambda: MulticastGroup("ff02::1", "10.0.0.1"), "interface", "10.0.0.1", "the group is of IPv6"),
        (lambda: MulticastGroup("232.1.1.1", source="fd00::1"), "source", "fd00::1", "the group is of IPv4"),
        (lambda: MulticastGroup("232.1.1.1", source="239.1.1.1"), "source", "239.1.1.1", "address of a host"),
        (lambda: MulticastGroup("232.1.1.1", source="0.0.0.0"), "source", "0.0.0.0", "address of a host"),
        (lambda: MulticastGroup("232.1.1.1", source="x"), "source", "x", "is not an IP address"),
        (lambda: MulticastGroup.parse("239.1.2.3%"), "interface", "", "is not the name"),
        (lambda: MulticastGroup.parse("@239.1.2.3"), "source", "", "is not an IP address"),
        (lambda: MulticastGroup.parse(7), "group", 7, "must be a string"),  # type: ignore[arg-type]
    ],
)
def test_group_that_cannot_be(make: Callable[[], object], option: str, value: object, reason: str) -> None:
    with pytest.raises(OptionError) as caught:
        make()
    assert (caught.value.option, caught.value.value) == (option, value)
    assert reason in caught.value.reason


def test_family_of_an_interface() -> None:
    assert interface_family("127.0.0.1") == 4
    assert interface_family("fe80::1") == 6
    assert interface_family("lo") is interface_family(1) is interface_family(None) is None
