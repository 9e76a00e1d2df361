"""``python -m compat`` runs a program as ``python`` does, with ``compat`` in the place of ``socketserver``.

Most tests here run one program in both ways and compare: what it sees of itself, what it prints, its
traceback to the last byte, and its exit status.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from asyncserver import __version__
from compat.__main__ import main as compat_main
from compat.defaults import DEFAULTS
from tests.processes import LONG, REPOSITORY

posix = pytest.mark.skipif(os.name == "nt", reason="signals and fork() are POSIX's")

COMPAT = ("-m", "compat")

STARTUP = REPOSITORY / "compat" / "startup"


class Outcome(NamedTuple):
    """How a process has ended, and what it has written."""

    status: int
    stdout: str
    stderr: str


class Processes:
    """Runs Python in a directory, with this repository on its path and warnings made errors."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path: list[Path] = []

    def write(self, files: Mapping[str, str]) -> None:
        """Write text files, and the directories that they are in."""
        for name, text in files.items():
            path = self.directory / name
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(text)

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file that need not be a text."""
        (self.directory / name).write_bytes(content)

    def write_archive(self, name: str, files: Mapping[str, str], start: bytes = b"") -> None:
        """Write a ZIP file; something may come before it."""
        (self.directory / name).write_bytes(start)
        with zipfile.ZipFile(self.directory / name, "a") as archive:
            for member, text in files.items():
                archive.writestr(member, text)

    def run(self, *arguments: str | Path, stdin: str = "", **environment: str) -> Outcome:
        """``python arguments``."""
        return self._all([arguments], stdin, environment)[0]

    def compare(self, *arguments: str | Path, stdin: str = "", **environment: str) -> Outcome:
        """``python arguments`` and ``python -m compat arguments`` have the same outcome: that is returned."""
        plain, swapped = self._all([arguments, (*COMPAT, *arguments)], stdin, environment)
        assert swapped == plain
        return plain

    def _all(
        self, commands: list[tuple[str | Path, ...]], stdin: str, environment: Mapping[str, str]
    ) -> list[Outcome]:
        with ExitStack() as stack:
            started = [stack.enter_context(self._start(command, environment)) for command in commands]
            for each in started:
                stack.callback(each.kill)
            outputs = [each.communicate(stdin, timeout=LONG) for each in started]
        return [
            Outcome(each.returncode, *map(_without_addresses, output))
            for each, output in zip(started, outputs, strict=True)
        ]

    def _start(
        self, arguments: tuple[str | Path, ...], environment: Mapping[str, str]
    ) -> subprocess.Popen[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ASYNCSERVER_")}
        path = os.pathsep.join(map(str, (*self.path, REPOSITORY)))
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.directory,
            env={**inherited, "PYTHONPATH": path, "PYTHONWARNINGS": "error", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def shown(value: object) -> str:
    """The first line of a command, as the name of a parameter."""
    return " ".join(map(str, value)).strip().partition("\n")[0] if isinstance(value, tuple) else ""


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


@pytest.fixture
def python(tmp_path: Path) -> Processes:
    """Runs programs in an empty directory."""
    return Processes(tmp_path)


# --- what a program sees of itself ---

FACTS = """\
import signal, sys, threading
for name, value in sorted(globals().items()):
    if name.startswith("__"):
        print(name, repr(value))
print(vars(sys.modules["__main__"]) is globals())
print(sys.argv)
print(sys.path)
print(sys.flags.safe_path, sys.warnoptions, sys.excepthook is sys.__excepthook__)
print([thread.name for thread in threading.enumerate()])
print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
"""


@pytest.fixture
def every_kind(python: Processes) -> Processes:
    """The program as a file, a module, a package, an archive ..."""
    names = ("program.py", "extensionless", "__main__.py", "package/__main__.py", "package/module.py")
    python.write(dict.fromkeys(names, FACTS))
    python.write({"package/__init__.py": "import sys\nprint(__name__, sys.argv)\n"})
    python.write_archive("archive.zip", {"__main__.py": FACTS})
    python.write_archive("application", {"__main__.py": FACTS}, b"#!/usr/bin/env python3\n")
    python.write_archive("nested.zip", {"inside/__main__.py": FACTS})
    if os.name != "nt":
        (python.directory / "link.py").symlink_to("package/module.py")
    return python


@pytest.mark.parametrize(
    "program",
    [
        ("program.py",),
        ("./program.py",),
        ("package/..//program.py",),
        ("extensionless",),
        pytest.param(("link.py",), marks=posix),
        ("-m", "program"),
        ("-m", "package"),
        ("-m", "package.module"),
        ("package",),
        ("package/",),
        (".",),
        ("archive.zip",),
        ("application",),
        ("nested.zip/inside",),
        ("-c", FACTS),
    ],
    ids=shown,
)
def test_program_sees_what_it_always_sees(every_kind: Processes, program: tuple[str, ...]) -> None:
    outcome = every_kind.compare(*program, "-x", "--loop", "a b")
    assert (outcome.status, outcome.stderr) == (0, "")
    assert "__name__ '__main__'" in outcome.stdout


@pytest.mark.parametrize(
    "program", [("program.py",), ("-m", "program"), ("package",), ("-c", FACTS)], ids=shown
)
def test_safe_path(every_kind: Processes, program: tuple[str, ...]) -> None:
    every_kind.path = [every_kind.directory]
    outcome = every_kind.compare(*program, PYTHONSAFEPATH="1")
    assert (outcome.status, outcome.stderr) == (0, "")
    assert "\nTrue ['error'] True\n" in outcome.stdout


@pytest.mark.parametrize("program", [("program.py",), ("-m", "program"), ("package",)], ids=shown)
@pytest.mark.parametrize("path", ["", "first", "first:second"])
@pytest.mark.parametrize("start", ["compat", "compat/__main__.py"])
def test_safe_path_started_by_its_path(
    every_kind: Processes, start: str, path: str, program: tuple[str, ...]
) -> None:
    # PYTHONPATH is where `-P` leaves something to be lost.
    environment = {"PYTHONPATH": path.replace(":", os.pathsep)}
    every_kind.write({"first/program.py": FACTS})
    plain = every_kind.run("-P", *program, "x", **environment)
    assert every_kind.run("-P", REPOSITORY / start, *program, "x", **environment) == plain
    assert (plain.status == 0) == (program[0] != "-m" or bool(path))


def test_program_from_the_standard_input(python: Processes) -> None:
    assert python.compare("-", "-x", stdin=FACTS).status == 0
    assert python.compare("-", stdin="def f():\n    1 / 0\nf()\n").status == 1


@posix
def test_closed_standard_input(python: Processes) -> None:
    closes = "import os, sys; os.close(0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    assert python.run("-c", closes, *COMPAT, "-") == python.run("-c", closes, "-") == (0, "", "")


@posix
def test_program_that_can_be_read_once(python: Processes) -> None:
    outcome = python.compare("/dev/stdin", "-x", stdin="import sys\nprint(sys.argv, __file__)\n")
    assert outcome == (0, "['/dev/stdin', '-x'] /dev/stdin\n", "")


def test_started_by_its_path(every_kind: Processes) -> None:
    every_kind.path = [Path("elsewhere")]
    plain = every_kind.run("program.py", "x")
    assert every_kind.run(REPOSITORY / "compat/__main__.py", "program.py", "x") == plain


# --- how a program ends ---

FAILS = """\
import helper
print("before")
try:
    helper.divide(0)
except ZeroDivisionError as exc:
    raise ValueError("chained") from exc
"""

HELPER = """\
def divide(number):
    try:
        return [][number]
    except IndexError:
        return 1 / number
"""


@pytest.mark.parametrize(
    "program",
    [("program.py",), ("-m", "program"), ("-m", "package"), ("package",), ("archive.zip",), ("-c", FAILS)],
    ids=shown,
)
def test_traceback(python: Processes, program: tuple[str, ...]) -> None:
    package = {"package/__init__.py": "", "package/__main__.py": FAILS, "package/helper.py": HELPER}
    python.write({"program.py": FAILS, "helper.py": HELPER, **package})
    python.write_archive("archive.zip", {"__main__.py": FAILS, "helper.py": HELPER})
    outcome = python.compare(*program)
    assert (outcome.status, outcome.stdout) == (1, "before\n")
    assert outcome.stderr.endswith("\nValueError: chained\n")


ENDS = {
    "returns": ("print('the end')", 0),
    "exit": ("import sys; sys.exit()", 0),
    "exit with a number": ("import sys; sys.exit(3)", 3),
    "exit with a text": ("import sys; sys.exit('why it ends')", 1),
    "exit at once": ("import os, atexit; atexit.register(print, 'never'); os._exit(5)", 5),
    "exit in a function that is called at exit": ("import atexit, sys; atexit.register(sys.exit, 3)", 0),
    "error with notes": ("error = ValueError(1)\nerror.add_note('a note')\nraise error", 1),
    "errors in a group": ("raise ExceptionGroup('two', [ValueError(1), TypeError(2)])", 1),
    "error that is no Exception": ("class Own(BaseException): pass\nraise Own('text')", 1),
    "error, and then functions at exit": ("import atexit\natexit.register(print, 'bye')\n1 / 0", 1),
    "hook of its own": ("import sys\nsys.excepthook = lambda *args: print(args[:2])\n1 / 0", 1),
    "hook that calls the one before": (
        """\
import sys, traceback
def hook(kind, value, trace, before=sys.excepthook):
    traceback.print_exception(kind, value, trace)
    before(kind, value, trace)
    print(trace.tb_next, value.__traceback__ is trace)
sys.excepthook = hook
1 / 0
""",
        1,
    ),
    "hook that fails": (
        """\
import sys
def hook(kind, value, trace):
    raise LookupError("hook") from value
sys.excepthook = hook
def f():
    1 / 0
f()
""",
        1,
    ),
    "hook that is interrupted": (
        """\
import sys
def hook(*args):
    raise KeyboardInterrupt
sys.excepthook = hook
1 / 0
""",
        1,
    ),
    "hook that exits": ("import sys\nsys.excepthook = lambda *args: sys.exit(4)\n1 / 0", 4),
    "hook that fails without a place to say so": (
        """\
import sys
sys.stderr = None
sys.excepthook = lambda *args: [][1]
1 / 0
""",
        1,
    ),
    "hook that cannot be called": ("import sys\nsys.excepthook = None\n1 / 0", 1),
    "no hook": ("import sys\ndel sys.excepthook\n1 / 0", 1),
    "what is known of the error afterwards": (
        """\
import atexit, sys, traceback
def hook(*args):
    print(sys.excepthook is hook)
sys.excepthook = hook
@atexit.register
def show():
    traceback.print_last()
    print(sys.last_value.__traceback__ is sys.last_traceback, sys.excepthook is hook)
1 / 0
""",
        1,
    ),
    "error in a thread": (
        """\
import threading
thread = threading.Thread(target=lambda: 1 / 0, name="T")
thread.start()
thread.join()
print("goes on")
""",
        0,
    ),
}

if os.name != "nt":
    ENDS |= {
        "keyboard interrupt": ("def f():\n    raise KeyboardInterrupt\nf()", -signal.SIGINT),
        "interrupted": (
            """\
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.raise_signal(signal.SIGINT)
""",
            -signal.SIGINT,
        ),
        "terminated": ("import signal\nsignal.raise_signal(signal.SIGTERM)", -signal.SIGTERM),
    }


@pytest.mark.parametrize(("source", "status"), ENDS.values(), ids=ENDS)
def test_end(python: Processes, source: str, status: int) -> None:
    python.write({"program.py": source})
    assert python.compare("program.py").status == status


INTERRUPTED = """\
import selectors, signal, socketserver
signal.signal(signal.SIGINT, signal.default_int_handler)

class Interrupts(selectors.DefaultSelector):
    def __init__(self):
        super().__init__()
        signal.raise_signal(signal.SIGINT)

selectors.DefaultSelector = Interrupts
with socketserver.TCPServer(("127.0.0.1", 0), None) as server:
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("interrupted")
"""


@posix
def test_interrupted_while_the_event_loop_is_made(python: Processes) -> None:
    python.write({"program.py": INTERRUPTED})
    assert python.run(*COMPAT, "--loop", "asyncio", "program.py") == (0, "interrupted\n", "")


@pytest.mark.parametrize(
    "name",
    [
        "exit with a text",
        "keyboard interrupt",
        "hook that calls the one before",
        "hook that fails",
        "no hook",
        "what is known of the error afterwards",
    ],
)
def test_end_of_a_module_and_of_code(python: Processes, name: str) -> None:
    source, status = ENDS[name]
    python.write({"program.py": source})
    assert python.compare("-m", "program").status == status
    assert python.compare("-c", source).status == status


@pytest.mark.parametrize(
    ("program", "status"),
    [
        (("missing.py",), 2),
        (("missing/missing.py",), 2),
        pytest.param(("program.py/",), 2, marks=posix),
        (("package",), 1),
        (("-m", "missing"), 1),
        (("-m", "package"), 1),
        (("-m", "package.missing"), 1),
        (("-m", "program.missing"), 1),
        (("program.py",), 1),
        (("imports.py",), 1),
        (("-m", "program"), 1),
        (("-c", "x = (\n"), 1),
        (("-c", "  indented"), 1),
    ],
    ids=shown,
)
def test_program_that_does_not_start(python: Processes, program: tuple[str, ...], status: int) -> None:
    python.write({"program.py": "x = 1\ndef f():\nreturn x = 2\n", "imports.py": "import program\n"})
    python.write({"package/__init__.py": ""})
    outcome = python.compare(*program)
    assert (outcome.status, outcome.stdout) == (status, "")


@pytest.mark.parametrize("source", ["print('out')\n1 / 0", "import sys\nprint('out')\nsys.exit('text')"])
@pytest.mark.parametrize("program", [("program.py",), ("-m", "program"), ("package",), ("-",)], ids=shown)
def test_order_of_output_and_error(python: Processes, program: tuple[str, ...], source: str) -> None:
    # Into one file, as many programs are started. What was printed comes first after a file, and only then.
    python.write({"program.py": source, "package/__main__.py": source, "parent.py": INTO_ONE_FILE})
    outcome = python.run("parent.py", *program, stdin=source, PYTHONUNBUFFERED="")
    assert python.run("parent.py", *COMPAT, *program, stdin=source, PYTHONUNBUFFERED="") == outcome
    assert outcome.stdout.startswith("out\n") == (program in {("program.py",), ("-",)})


INTO_ONE_FILE = """\
import subprocess, sys
sys.exit(subprocess.run([sys.executable, *sys.argv[1:]], stderr=subprocess.STDOUT).returncode)
"""

# Whether each of these runs at all, and what is said of it, is the interpreter's matter.
NOT_QUITE_TEXT = {
    "null byte": b"print(1)\nx = 1\0\n",
    "null byte in a comment": b"print(1)\n# \0\n",
    "bad UTF-8": b'print(1)\nx = "\xe9"\n',
    "bad UTF-8 in a comment": b"print(1)\n\n\n# \xe9\n",
    "bad UTF-8 on the first line": b"# \xe9\nprint(1)\n",
    "bad UTF-8 after an error": b"x = (\n1 1\n# \xe9\n",
    "bad UTF-8 after a warning": b'print(1)\nx = "\\d"\n# \xe9\n',
    "UTF-16": "print(1)\n".encode("utf-16"),
    "declared UTF-8 that is bad": b'# coding: utf-8\nx = "\xe9"\n',
    "declared UTF-8 that is bad in a comment": b"# coding: utf-8\n# \xe9\nprint(1)\n",
    "marked UTF-8 that is bad in a comment": b"\xef\xbb\xbf# \xe9\nprint(1)\n",
    "Latin 1": b'# coding: latin-1\nprint(ascii("\xe9"))\n',
    "Latin 1 on the second line": b'#!/usr/bin/python\n# -*- coding: latin-1 -*-\nprint(ascii("\xe9"))\n',
    "Latin 1 on the third line": b'\n\n# coding: latin-1\nprint(ascii("\xe9"))\n',
    "Latin 1 after a statement": b'x = 1\n# coding: latin-1\nprint(ascii("\xe9"))\n',
    "Latin 1 and a syntax error": b'# coding: latin-1\nx = "\xe9" 1\n',
    "ASCII that is none": b'# coding: ascii\nprint("\xc3\xa9")\n',
    "unknown encoding": b"# coding: nonsense\nprint(1)\n",
    "no text encoding": b"# coding: rot13\nprint(1)\n",
    "mark of another encoding": b"\xef\xbb\xbf# coding: latin-1\nprint(1)\n",
}


@pytest.mark.parametrize("content", NOT_QUITE_TEXT.values(), ids=NOT_QUITE_TEXT)
def test_program_that_is_not_quite_a_text(python: Processes, content: bytes) -> None:
    python.write_bytes("program.py", content)
    python.write({"feeds.py": FEEDS})
    python.compare("program.py", "x", PYTHONWARNINGS="default")
    feeds = [python.run("feeds.py", *start, "-", PYTHONWARNINGS="default") for start in ((), COMPAT)]
    assert feeds[0] == feeds[1]


FEEDS = """\
import subprocess, sys
with open("program.py", "rb") as file:
    sys.exit(subprocess.run([sys.executable, *sys.argv[1:]], stdin=file).returncode)
"""


# --- what a program does ---

PICKLES = """\
import multiprocessing, pickle, sys
from concurrent.futures import ProcessPoolExecutor

class Thing:
    def __init__(self, number):
        self.number = number

def work(thing):
    import socketserver
    swapped = any(each.__name__ == "EventLoopMixIn" for each in socketserver.TCPServer.__mro__)
    return type(thing) is Thing, thing.number, __name__, sys.argv, "compat" if swapped else "stdlib"

def work_in_process(writer, thing):
    writer.send(work(thing))

if __name__ == "__main__":
    print(pickle.dumps([Thing, work, Thing(3)]))
    print(type(pickle.loads(pickle.dumps(Thing(3)))) is Thing)
    print(work(Thing(0)))
    for method in sys.argv[1:]:
        context = multiprocessing.get_context(method)
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=work_in_process, args=(writer, Thing(1)))
        process.start()
        print(method, reader.recv())
        process.join()
        print(process.exitcode)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        print(pool.submit(work, Thing(2)).result())
"""


@pytest.mark.parametrize("program", [("program.py",), ("-m", "program")], ids=["script", "module"])
def test_objects_of_main_in_other_processes(python: Processes, program: tuple[str, ...]) -> None:
    python.write({"program.py": PICKLES})
    methods = ("spawn",) if os.name == "nt" else ("spawn", "fork", "forkserver")
    plain = python.run(*program, *methods)
    swapped = python.run(*COMPAT, *program, *methods)
    assert plain.stdout.count("'stdlib'") == 2 + len(methods)
    assert swapped == plain._replace(stdout=plain.stdout.replace("'stdlib'", "'compat'"))


OWN = "print('the program has its own', __name__)\nTCPServer = None\n"

USES_OWN = """\
import subprocess, sys
import {modules}
import http.server, socketserver
import compat as again
assert again is compat
print(compat.TCPServer, [each.__name__ for each in http.server.HTTPServer.__mro__])
if sys.argv[1:]:
    sys.stdout.flush()
    subprocess.run([sys.executable, __file__], check=True)
"""


@pytest.mark.parametrize("kind", ["module", "package"])
@pytest.mark.parametrize("start", ["-m", "path"])
def test_program_with_a_compat_of_its_own(python: Processes, kind: str, start: str) -> None:
    # `servers` is also the name of a module of this package.
    modules = {"module": ["compat"], "package": ["compat", "compat.servers"]}[kind]
    files = {"module": ["compat.py"], "package": ["compat/__init__.py", "compat/servers.py"]}[kind]
    python.write({f"project/{file}": OWN for file in files})
    python.write({"project/program.py": USES_OWN.format(modules=", ".join(modules))})
    own = COMPAT if start == "-m" else (REPOSITORY / "compat/__main__.py",)
    outcome = python.run(*own, "project/program.py", "and a child")
    assert (outcome.status, outcome.stderr) == (0, "")
    expected = "".join(f"the program has its own {name}\n" for name in modules)
    mro = ["HTTPServer", "TCPServer", "BaseServer", "EventLoopMixIn", "TCPServer", "BaseServer", "object"]
    assert outcome.stdout == f"{expected}None {mro}\n" * 2


USES_THIS = """\
import sys
print([name for name in sys.modules if name.partition(".")[0] == "compat"])
for name in sys.argv[1].split():
    __import__(name)
import compat, compat.servers, socketserver
from compat.pool import ThreadPool
for name in socketserver.__all__:
    assert getattr(compat, name) is getattr(socketserver, name) is getattr(compat.servers, name), name
assert compat.ThreadPool is ThreadPool
assert issubclass(socketserver.TCPServer, compat.EventLoopMixIn)
assert socketserver.TCPServer.__module__ == "socketserver"
with compat.installed() as module:
    assert module is socketserver is sys.modules["socketserver"]
print("the same")
"""


@pytest.mark.parametrize("imports", ["compat", "socketserver", "compat.servers", "http.server compat"])
@pytest.mark.parametrize("where", ["program", "child"])
def test_program_that_uses_compat_itself(python: Processes, imports: str, where: str) -> None:
    python.write({"program.py": USES_THIS, "parent.py": PARENT})
    program = ("program.py", imports)
    outcome = python.run(*COMPAT, *(program if where == "program" else ("parent.py", *program)))
    assert outcome == (0, "[]\nthe same\n", "")


@posix
def test_program_that_finds_compat_on_another_path(python: Processes) -> None:
    link = python.directory / "link"
    link.symlink_to(REPOSITORY)
    python.path = [link]
    python.write({"program.py": USES_THIS})
    assert python.run(REPOSITORY / "compat/__main__.py", "program.py", "") == (0, "[]\nthe same\n", "")


# --- child processes ---

PARENT = """\
import subprocess, sys
sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)
"""

IS_SWAPPED = """\
import sys
early = [name for name in ("compat", "asyncserver", "socketserver") if name in sys.modules]
import socketserver
print(*early, any(each.__name__ == "EventLoopMixIn" for each in socketserver.TCPServer.__mro__))
"""


@pytest.mark.parametrize(
    ("start", "swapped"),
    [
        ((), True),
        (("-m", "child"), True),
        (("parent.py",), True),
        (("-W", "error", "-X", "dev"), True),
        (("-m", "compat"), True),
        (("-m", "compat", "--executor", "serial", "-m", "compat"), True),
        (("-I",), False),
        (("-S",), False),
    ],
    ids=shown,
)
def test_child_process(python: Processes, start: tuple[str, ...], swapped: bool) -> None:
    python.write({"child.py": IS_SWAPPED, "parent.py": PARENT})
    arguments = start if start[-1:] == ("child",) else (*start, "child.py")
    early = "asyncserver socketserver " if "compat" in start else ""
    outcome = python.run(*COMPAT, "parent.py", *arguments)
    assert outcome == (0, f"{early}{swapped}\n", "")


@pytest.mark.parametrize("start", [(), ("parent.py",), ("-m", "compat", "--no-children")], ids=shown)
def test_no_children(python: Processes, start: tuple[str, ...]) -> None:
    python.write({"child.py": IS_SWAPPED, "parent.py": PARENT})
    outcome = python.run(*COMPAT, "--no-children", "parent.py", *start, "child.py")
    assert outcome == (0, "asyncserver socketserver True\n" if "compat" in start else "False\n", "")


def test_no_children_leaves_the_environment_alone(python: Processes) -> None:
    source = "import os; print(sorted(os.environ.items()))"
    assert python.run(*COMPAT, "--no-children", "-c", source) == python.run("-c", source)


def test_children_keep_the_path(python: Processes) -> None:
    source = "import os; print(os.environ['PYTHONPATH'])"
    python.write({"parent.py": PARENT})
    python.path = [Path("elsewhere")]
    outcome = python.run(*COMPAT, "parent.py", "parent.py", "-c", source)
    assert outcome == (0, f"{STARTUP}{os.pathsep}elsewhere{os.pathsep}{REPOSITORY}\n", "")


SITECUSTOMIZE = """\
import os, sys
print("customized", __name__, __file__)
if os.environ.get("BLOCKED"):
    sys.modules[os.environ["BLOCKED"]] = None
if os.environ.get("IMPORTED"):
    __import__(os.environ["IMPORTED"])
"""

PARENT_WITH_ENVIRONMENT = """\
import os, subprocess, sys
name, _, value = sys.argv[1].partition("=")
os.environ[name] = value
sys.exit(subprocess.run([sys.executable, *sys.argv[2:]]).returncode)
"""


@pytest.fixture
def customized(python: Processes, monkeypatch: pytest.MonkeyPatch) -> Processes:
    """With a ``sitecustomize`` that there was before."""
    python.write({"site/sitecustomize.py": SITECUSTOMIZE, "parent.py": PARENT_WITH_ENVIRONMENT})
    python.path = [python.directory / "site"]
    return python


@pytest.mark.parametrize("imported", ["", "socketserver", "http.server", "compat"])
def test_children_run_the_sitecustomize_that_there_is(customized: Processes, imported: str) -> None:
    code = (
        "import sys, socketserver\n"
        "print(sys.modules['sitecustomize'].__file__)\n"
        "print(any(each.__name__ == 'EventLoopMixIn' for each in socketserver.TCPServer.__mro__))"
    )
    outcome = customized.run(*COMPAT, "parent.py", f"IMPORTED={imported}", "-c", code)
    file = customized.directory / "site/sitecustomize.py"
    assert outcome == (0, f"customized sitecustomize {file}\n" * 2 + f"{file}\nTrue\n", "")


def test_sitecustomize_that_fails_says_so(python: Processes) -> None:
    python.write({"sitecustomize.py": "1 / 0\n"})
    python.path = [python.directory]
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'pass'])"
    assert python.compare("-c", code).stderr.count("ZeroDivisionError: division by zero") == 2


def test_children_that_cannot_have_this_package_keep_what_they_have(customized: Processes) -> None:
    # Programs start other Pythons, too: the tools of the system, or those of another environment.
    code = (
        "import http.server, socketserver as module\n"
        "print(http.server.HTTPServer.__mro__, module.__file__)\n"
        "print(module.__spec__.origin, module.__spec__.loader, module.__loader__)"
    )
    outcome = customized.compare("parent.py", "BLOCKED=anyio", "-c", code)
    assert (outcome.status, outcome.stderr) == (0, "")


def test_children_that_are_older_pythons_keep_what_they_have(python: Processes) -> None:
    code = (
        "import runpy, sys\n"
        "sys.version_info, before = (3, 10, 0, 'final', 0), list(sys.meta_path)\n"
        "runpy.run_path(sys.argv[1])\n"
        "print(sys.meta_path == before)"
    )
    outcome = python.run("-c", code, STARTUP / "sitecustomize.py", ASYNCSERVER_COMPAT=str(REPOSITORY))
    assert outcome == (0, "True\n", "")


# --- options ---

SERVES = """\
import asyncio, os, socket, socketserver, subprocess, sys, threading
import compat

SERVING = os.getpid(), threading.current_thread()

class Where(socketserver.BaseRequestHandler):
    def handle(self):
        here = threading.current_thread()
        if os.getpid() != SERVING[0]:
            place = "a child process"
        elif here is SERVING[1]:
            place = "the serving thread"
        else:
            place = here.name
        self.request.sendall(place.encode())

class Loop(compat.AsyncStreamRequestHandler):
    async def handle(self):
        await self.stream.send(type(asyncio.get_running_loop()).__module__.encode())

def answers(server_class, handler_class):
    found = []
    with server_class(("127.0.0.1", 0), handler_class) as server:
        def ask():
            try:
                for _ in range(2):
                    with socket.create_connection(server.server_address, timeout=30) as client:
                        found.append(client.recv(100).decode())
            finally:
                server.shutdown()
        thread = threading.Thread(target=ask)
        thread.start()
        server.serve_forever()
        thread.join()
    return found

def place(server_class):
    one, two = answers(server_class, Where)
    return "new threads" if one != two else "one thread" if server_class.__name__ in one else one

print(place(socketserver.TCPServer), "and", place(socketserver.ThreadingTCPServer))
print("uvloop" if "uvloop" in answers(compat.TCPServer, Loop)[0] else "asyncio")
if sys.argv[1:]:
    sys.stdout.flush()
    subprocess.run([sys.executable, __file__], check=True)
"""


@pytest.mark.parametrize(
    ("options", "places", "loop"),
    [
        ((), "the serving thread and new threads", "uvloop"),
        (("--executor", "serial"), "the serving thread and the serving thread", "uvloop"),
        (("--executor=threads", "--loop=asyncio"), "new threads and new threads", "asyncio"),
        (("--loop", "uvloop", "--executor", "pool:1"), "one thread and one thread", "uvloop"),
        pytest.param(("--executor", "fork"), "a child process and a child process", "uvloop", marks=posix),
    ],
    ids=shown,
)
def test_options_hold_for_the_program_and_its_children(
    python: Processes, options: tuple[str, ...], places: str, loop: str
) -> None:
    if loop == "uvloop" and "--loop" not in options:
        pytest.importorskip("uvloop")
    python.write({"program.py": SERVES})
    # From 3.12 on, Python warns of a fork where threads run: here the client is one.
    outcome = python.run(*COMPAT, *options, "program.py", "and a child", PYTHONWARNINGS="")
    assert outcome == (0, f"{places}\n{loop}\n" * 2, "")


@pytest.fixture
def defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line sets is set again when the test is over."""
    for name, value in vars(DEFAULTS).items():
        monkeypatch.setattr(DEFAULTS, name, value)


@pytest.mark.usefixtures("defaults")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--executor", "pool:0", "x.py"), r"--executor pool:0: .*at least 1"),
        (("--executor", "pool:x", "x.py"), r"--executor pool:x: .*'pool:N'"),
        (("--executor=nonsense", "x.py"), r"--executor nonsense: .*'serial', 'threads'"),
        (("--executor", "", "x.py"), r"--executor : .*'serial'"),
        (("--loop", "nonsense", "x.py"), r"--loop nonsense: .*uvloop"),
        (("--loop",), r"--loop needs a value"),
        (("--no-children=yes", "x.py"), r"unknown option: --no-children"),
        (("--nonsense", "x.py"), r"unknown option: --nonsense"),
        (("-x", "x.py"), r"unknown option: -x"),
        (("-m",), r"-m needs a value"),
        (("-c",), r"-c needs a value"),
        ((), r"there is no program to run"),
        (("--loop", "asyncio"), r"there is no program to run"),
    ],
    ids=shown,
)
def test_wrong_options(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["python -m compat", *arguments])
    with pytest.raises(SystemExit) as exits:
        compat_main()
    assert exits.value.code == 2
    printed = capsys.readouterr()
    usage, complaint = printed.err.splitlines()
    assert printed.out == ""
    assert usage.startswith("usage: python -m compat ")
    assert re.match(f"python -m compat: {message}", complaint)


def test_status_of_wrong_options(python: Processes) -> None:
    outcome = python.run(*COMPAT, "--loop", "nonsense", "-c", "print('runs')")
    assert (outcome.status, outcome.stdout) == (2, "")
    assert "--loop nonsense: " in outcome.stderr


def test_options_end_where_the_program_begins(python: Processes) -> None:
    python.write({"--loop.py": "import sys\nprint(sys.argv)"})
    assert python.run(*COMPAT, "--", "--loop.py", "--help") == (0, "['--loop.py', '--help']\n", "")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(python: Processes, option: str) -> None:
    outcome = python.run(*COMPAT, "--loop", "asyncio", option)
    assert (outcome.status, outcome.stderr) == (0, "")
    for each in ("usage: python -m compat", "--executor", "pool:N", "--loop", "--no-children", "--version"):
        assert each in outcome.stdout


def test_version(python: Processes) -> None:
    assert python.run(*COMPAT, "--version") == (0, f"compat of asyncserver {__version__}\n", "")
