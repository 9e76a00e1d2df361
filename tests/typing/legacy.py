"""What a type checker has to say of programs on `compat`; see `handlers.py`."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

import http.server
import socketserver as stdlib
from typing import assert_type

import compat as socketserver
from asyncserver import Handler, Server, Stream
from compat import AsyncStreamRequestHandler, EventLoopMixIn, ThreadPool, legacy


class Blocking(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert_type(self.rfile.readline(), bytes)
        self.wfile.write(b"")


class Async(AsyncStreamRequestHandler):
    async def handle(self) -> None:
        assert_type(self.stream, Stream)
        assert_type(await self.stream.receive(), bytes)


class Threads(socketserver.ThreadingMixIn, socketserver.TCPServer):
    max_threads = 64
    allow_reuse_address = True


class HTTP(EventLoopMixIn, http.server.ThreadingHTTPServer): ...


def everything() -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Blocking) as server:
        assert_type(server, socketserver.ThreadingTCPServer)
        assert_type(server.max_threads, int | None)
        server.serve_forever()
    original: stdlib.BaseServer = Threads(("127.0.0.1", 0), Blocking)
    original.shutdown()
    socketserver.UnixStreamServer("/run/x.sock", Blocking)
    socketserver.UDPServer(("", 0), socketserver.DatagramRequestHandler)
    socketserver.ForkingTCPServer(("", 0), Blocking)
    HTTP(("", 0), http.server.SimpleHTTPRequestHandler)
    socketserver.TCPServer(9999, Blocking)  # type: ignore[arg-type]
    socketserver.TCPServers(("", 0), Blocking)  # type: ignore[attr-defined]


native: Handler = legacy(Blocking)
pooled: Handler = legacy(Blocking, ThreadPool(8))
Server(legacy(Blocking, "fork"), "tcp://:1")
legacy()  # type: ignore[call-arg]
