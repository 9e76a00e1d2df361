"""Finding handlers in modules and files, and what is said when there is none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncserver.loading import Target, TargetError, TargetImportError, load_target, split_target

HANDLERS = """
from asyncserver import Server, StreamHandler

async def echo(stream):
    pass

class Chat(StreamHandler):
    async def handle(self):
        pass

class Service:
    async def serve(self, stream):
        pass

async def two(one, other):
    pass

async def _hidden(stream):
    pass

def plain(stream):
    pass

service = Service()
server = Server(echo, "tcp://127.0.0.1:0")
number = 7
"""


@pytest.fixture(autouse=True)
def own_import_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test is in a directory of its own, and leaves no module behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path: str, text: str = HANDLERS) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def name_of(found: Any) -> str:
    name: str = found.__qualname__
    return name


# --- taking the text apart ---


@pytest.mark.parametrize(
    ("text", "where", "name", "is_file"),
    [
        ("app:echo", "app", "echo", False),
        ("app.handlers:echo", "app.handlers", "echo", False),
        ("app:service.serve", "app", "service.serve", False),
        ("app", "app", "", False),
        ("app:", "app", "", False),
        ("echo.py:echo", "echo.py", "echo", True),
        ("examples/echo.py:echo", "examples/echo.py", "echo", True),
        ("examples/echo.py", "examples/echo.py", "", True),
        ("examples/echo:echo", "examples/echo", "echo", True),
        ("/a:b/echo.py", "/a:b/echo.py", "", True),
        ("/a:b/echo.py:echo", "/a:b/echo.py", "echo", True),
        (r"C:\echo.py", r"C:\echo.py", "", True),
        (r"C:\echo.py:echo", r"C:\echo.py", "echo", True),
    ],
)
def test_target_is_taken_apart(text: str, where: str, name: str, is_file: bool) -> None:
    target = split_target(text)
    assert target == Target(where, name)
    assert target.is_file is is_file


@pytest.mark.parametrize(
    "text", ["", ":", ":echo", "app:1", "app:echo()", "app:a..b", "my-app:echo", ".app:echo"]
)
def test_impossible_target_is_an_error(text: str) -> None:
    with pytest.raises(TargetError):
        split_target(text)


# --- modules ---


def test_module_is_found_in_app_dir() -> None:
    write("source/app/handlers.py")
    assert name_of(load_target("app.handlers:echo", "source")) == "echo"


def test_working_directory_is_the_default_app_dir() -> None:
    write("app.py")
    assert name_of(load_target("app:echo")) == "echo"


def test_app_dir_comes_before_the_rest_of_the_path(tmp_path: Path) -> None:
    write("other/app.py", "def echo(): return 'other'")
    write("mine/app.py", "def echo(): return 'mine'")
    sys.path.insert(0, str(tmp_path / "other"))
    found: Any = load_target("app:echo", "mine")
    assert found() == "mine"


def test_nested_attribute_is_found() -> None:
    write("app.py")
    assert name_of(load_target("app:service.serve")) == "Service.serve"


def test_missing_module_is_named() -> None:
    with pytest.raises(TargetError, match="there is no module 'nowhere_at_all' in "):
        load_target("nowhere_at_all:echo")


def test_missing_submodule_is_named() -> None:
    write("app/__init__.py", "")
    with pytest.raises(TargetError, match=r"no module 'app\.handlers': 'app' has none of this name"):
        load_target("app.handlers.deep:echo")


def test_module_that_lacks_another_one_shows_where() -> None:
    write("app.py", "\nimport nowhere_at_all\n")
    with pytest.raises(TargetImportError) as caught:
        load_target("app:echo")
    message = str(caught.value)
    assert message.startswith(
        "app cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'; install"
    )
    assert message.endswith("app.py:2: import nowhere_at_all")


def test_module_that_lacks_a_part_of_its_own_package_shows_where() -> None:
    write("app/__init__.py", "import app.handlers.deep")
    with pytest.raises(TargetImportError, match=r"No module named 'app\.handlers'"):
        load_target("app.handlers.deep:echo")


# --- files ---


@pytest.mark.parametrize("path", ["examples/echo.py", "./examples/echo.py", "examples/../examples/echo.py"])
def test_file_is_loaded(path: str) -> None:
    write("examples/echo.py")
    assert name_of(load_target(f"{path}:echo")) == "echo"


def test_absolute_file_is_loaded(tmp_path: Path) -> None:
    write("examples/echo.py")
    assert name_of(load_target(f"{tmp_path}/examples/echo.py:echo")) == "echo"


def test_file_imports_what_stands_beside_it() -> None:
    write("examples/beside_it.py", "answer = 42")
    write("examples/echo.py", "import beside_it\n\ndef echo(): return beside_it.answer")
    found: Any = load_target("examples/echo.py:echo")
    assert found() == 42


def test_file_is_a_module_that_others_can_find() -> None:
    write("my_file.py", "import dataclasses\n@dataclasses.dataclass\nclass Echo:\n    number: 'int'")
    load_target("my_file.py:Echo")
    assert sys.modules["my_file"].__name__ == "my_file"


def test_file_named_like_a_loaded_module_does_not_replace_it() -> None:
    import json

    write("json.py", "async def echo(stream): pass")
    assert name_of(load_target("json.py:echo")) == "echo"
    assert sys.modules["json"] is json


def test_file_whose_name_is_no_identifier_is_loaded() -> None:
    write("my-echo.py")
    assert name_of(load_target("my-echo.py:echo")) == "echo"


def test_file_in_a_package_can_import_relatively() -> None:
    write("source/service/__init__.py", "")
    write("source/service/parts/__init__.py", "")
    write("source/service/words.py", "greeting = 'hello'")
    write("source/service/parts/echo.py", "from ..words import greeting\n\ndef echo(): return greeting")
    found: Any = load_target("source/service/parts/echo.py:echo")
    assert found() == "hello"
    assert found.__module__ == "service.parts.echo"


def test_package_itself_can_be_named_by_its_file() -> None:
    write("service/__init__.py")
    assert name_of(load_target("service/__init__.py:echo")) == "echo"


def test_package_file_hidden_by_another_package_is_an_error() -> None:
    write("json/__init__.py", "")
    write("json/decoder.py", "async def echo(stream): pass")
    with pytest.raises(TargetError, match=r"is the module json\.decoder, but another one was imported"):
        load_target("json/decoder.py:echo")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere.py:echo", "there is no file .*nowhere.py"),
        ("examples/echo:echo", "there is no file .*; did you mean echo.py?"),
        ("./examples:echo", "is a directory; name a file in it"),
        ("examples/notes.txt:echo", "is not a Python file"),
    ],
)
def test_file_that_cannot_be_loaded_is_an_error(text: str, message: str) -> None:
    write("examples/echo.py")
    write("examples/notes.txt", "")
    with pytest.raises(TargetError, match=message):
        load_target(text)


def test_file_that_fails_leaves_no_module() -> None:
    write("broken_file.py", "1/0")
    with pytest.raises(TargetImportError):
        load_target("broken_file.py:echo")
    assert "broken_file" not in sys.modules


# --- what is raised while importing ---


@pytest.mark.parametrize("target", ["broken:echo", "broken.py:echo"])
def test_traceback_has_the_users_frames_only(target: str) -> None:
    write("broken.py", "def fail():\n    raise RuntimeError('on purpose')\n\nfail()")
    with pytest.raises(TargetImportError) as caught:
        load_target(target)
    lines = [line for line in str(caught.value).splitlines() if line.startswith("  File ")]
    assert ["broken.py" in line for line in lines] == [True, True]
    assert str(caught.value).endswith("RuntimeError: on purpose")


@pytest.mark.parametrize("target", ["broken:echo", "broken.py:echo"])
def test_syntax_error_shows_the_line(target: str) -> None:
    write("broken.py", "async def echo(stream)\n    pass\n")
    with pytest.raises(TargetImportError) as caught:
        load_target(target)
    assert "async def echo(stream)" in str(caught.value)
    assert "SyntaxError" in str(caught.value)
    assert "loading.py" not in str(caught.value)


def test_exit_while_importing_is_a_failure() -> None:
    write("ending.py", "import sys\nsys.exit(0)")
    with pytest.raises(TargetImportError, match="SystemExit: 0"):
        load_target("ending:echo")


def test_interrupt_while_importing_goes_through() -> None:
    write("interrupted.py", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_target("interrupted:echo")


# --- the name ---


def test_missing_name_is_suggested() -> None:
    write("app.py")
    with pytest.raises(TargetError, match=r"app has no 'ecko'; did you mean 'echo'\?"):
        load_target("app:ecko")


def test_missing_nested_name_says_where_the_path_ends() -> None:
    write("app.py")
    with pytest.raises(TargetError, match=r"app:service has no 'sevre'; did you mean 'serve'\?"):
        load_target("app:service.sevre")


@pytest.mark.parametrize("target", ["app", "app:", "app:something_else"])
def test_what_could_serve_is_listed(target: str) -> None:
    write("app.py")
    with pytest.raises(TargetError, match=r"app:echo, app:Chat, app:server$"):
        load_target(target)


def test_what_could_serve_datagrams_is_listed() -> None:
    write(
        "app.py",
        """
from asyncserver import DatagramHandler, DatagramServer, Lines, Responder, sessions
from other import imported

class Packets(DatagramHandler):
    async def handle(self):
        pass

@sessions
async def talk(session):
    pass

responder = Responder(bytes.upper, framing=Lines())
server = DatagramServer(Packets, "udp://127.0.0.1:0")
""",
    )
    write("other.py", "from asyncserver import sessions\n@sessions\nasync def imported(session): pass")
    with pytest.raises(TargetError, match=r"serve: app:Packets, app:talk, app:responder, app:server$"):
        load_target("app")


def test_imported_names_are_not_suggested() -> None:
    write("other.py")
    write("app.py", "from other import echo, Chat\nfrom asyncio import sleep")
    with pytest.raises(TargetError, match="there is no async function with one argument in app"):
        load_target("app")
