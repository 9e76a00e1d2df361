"""Found by ``site`` in the Python processes that a program under ``python -m compat`` starts.

Puts ``compat`` in the place of ``socketserver`` there, too, when that is imported; before, it costs nothing.
"""

import importlib
import os
import sys
from importlib.machinery import PathFinder
from typing import Any


class _SocketserverFinder:
    """Loads the standard library's module first, then ``compat``, and gives what stands in."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> Any:
        if fullname == "socketserver":
            return self._replace().__spec__
        if fullname == "compat" and _is_ours(PathFinder.find_spec(fullname)):
            # It imports socketserver itself, and has to get the original.
            self._replace()
            return sys.meta_path[0].find_spec(fullname, None)
        return None

    def _replace(self) -> Any:
        sys.meta_path.remove(self)
        original = importlib.import_module("socketserver")
        own = {
            name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "compat"
        }
        sys.path.insert(0, os.environ["ASYNCSERVER_COMPAT"])
        try:
            from compat.__main__ import install_from_environment

            return install_from_environment()
        except ImportError:
            return original  # Another Python, without the packages that it takes: it keeps what it has.
        finally:
            sys.path.remove(os.environ["ASYNCSERVER_COMPAT"])
            sys.modules.update(own)  # The program may have a module of this name, which came first.


def _is_ours(spec: Any) -> bool:
    if spec is None or spec.origin is None:
        return False
    parent = os.path.dirname(os.path.dirname(os.path.abspath(spec.origin)))
    return bool(parent == os.environ["ASYNCSERVER_COMPAT"])


def _run_the_next_sitecustomize() -> None:
    """There is one file of this name on the path that counts, and this one has displaced another."""
    here = os.path.dirname(os.path.abspath(__file__))
    rest = [entry for entry in sys.path if os.path.abspath(entry) != here]
    spec = PathFinder.find_spec("sitecustomize", rest)
    if spec is not None and spec.loader is not None:
        from importlib.util import module_from_spec

        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


# Programs start older Pythons, too, to which much of this package is a syntax error.
if "ASYNCSERVER_COMPAT" in os.environ and sys.version_info >= (3, 11) and "socketserver" not in sys.modules:
    finder: Any = _SocketserverFinder()
    sys.meta_path.insert(0, finder)
_run_the_next_sitecustomize()
