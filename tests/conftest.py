"""Every async test runs on asyncio and on uvloop, and none leaves anything behind (see ``tests.leaks``).

A test for one kind of loop only says ``@pytest.mark.asyncio(loop_factories=["uvloop"])``; a test that
is not async itself, and starts the loop by name, takes the ``loop_name`` fixture.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping

import pytest

from tests import leaks
from tests.certificates import authority

try:
    import uvloop
except ImportError:  # Windows and PyPy have none
    LOOP_FACTORIES: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "asyncio": asyncio.new_event_loop
    }
else:
    LOOP_FACTORIES = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(leaks, "leaks")


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return LOOP_FACTORIES


@pytest.fixture
def server_context() -> ssl.SSLContext:
    """A fixture, because it is made outside of the running loop: files are read and written."""
    return authority().server_context()


@pytest.fixture
def client_context() -> ssl.SSLContext:
    """It trusts ``server_context``."""
    return authority().client_context()


@pytest.fixture(params=list(LOOP_FACTORIES))
def loop_name(request: pytest.FixtureRequest) -> str:
    """The name of each kind of loop in turn, for a synchronous test that starts its own."""
    name: str = request.param
    return name
