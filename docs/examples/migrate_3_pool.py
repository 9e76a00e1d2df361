"""The key-value store with a bound on its threads: the third of six, see howto/migrate-from-socketserver.md.

Run it, from the repository's directory, with a port (0: a free one), and try it::

    python docs/examples/migrate_3_pool.py 9999
    printf 'set colour blue\\nget colour\\n' | nc -N 127.0.0.1 9999
"""

from __future__ import annotations

import sys

import compat as socketserver


def answer(values: dict[str, str], line: bytes) -> bytes:
    """Carry out one command."""
    match line.decode(errors="replace").split():
        case ["set", name, value]:
            values[name] = value
            return b"ok\n"
        case ["get", name] if name in values:
            return f"{values[name]}\n".encode()
        case ["get", _]:
            return b"no such name\n"
        case _:
            return b"commands: set NAME VALUE, get NAME\n"


class StoreHandler(socketserver.StreamRequestHandler):
    """One client."""

    def handle(self) -> None:
        """Answer a line at a time until it has sent its last one."""
        for line in self.rfile:
            self.wfile.write(answer(self.server.values, line))


class StoreServer(socketserver.ThreadingTCPServer):
    """All clients share what is stored."""

    allow_reuse_address = True
    daemon_threads = True
    max_threads = 64

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), StoreHandler)
        self.values: dict[str, str] = {}


def main(port: str = "9999") -> None:
    """Serve until a signal ends the process."""
    with StoreServer(int(port)) as server:
        print("listening on port", server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
