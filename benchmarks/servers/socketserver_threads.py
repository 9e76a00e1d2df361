"""The standard library's ThreadingTCPServer: a thread for each connection."""

from __future__ import annotations

import socketserver

from serving import BACKLOG, arguments, ready


class Server(socketserver.ThreadingTCPServer):
    """With a queue as long as the others', instead of 5."""

    request_queue_size = BACKLOG
    allow_reuse_address = True
    daemon_threads = True


class Echo(socketserver.BaseRequestHandler):
    """Writes back what comes in."""

    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)


class EchoLines(socketserver.StreamRequestHandler):
    """Answers each line; as in most such handlers Nagle's algorithm stays on, which merges the answers."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


if __name__ == "__main__":
    options = arguments(works=("echo", "lines"))
    with Server(("127.0.0.1", options.port), Echo if options.work == "echo" else EchoLines) as server:
        ready()
        server.serve_forever()
