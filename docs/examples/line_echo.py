"""Send every line back: the smallest useful server.

Run it, from the repository's directory::

    python -m asyncserver serve docs/examples/line_echo.py:line_echo tcp://127.0.0.1:9999

and try it::

    nc 127.0.0.1 9999
"""

from __future__ import annotations

from asyncserver import Stream


async def line_echo(stream: Stream) -> None:
    """Serve one client until it has sent its last line."""
    async for line in stream.lines(max_bytes=65_536):
        await stream.send(line + b"\n")
