"""Step 1 of the tutorial (docs/tutorial.md), where it is called lines.py: every line comes back in capitals.

Run it, from the repository's directory, and try it::

    python docs/examples/tutorial_1_lines.py
    nc 127.0.0.1 9999
"""

import logging

from asyncserver import Stream, run


async def shout(stream: Stream) -> None:
    async for line in stream.lines(max_bytes=1_000):
        await stream.send(line.upper() + b"\n")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    run(shout, "tcp://127.0.0.1:9999")
