"""anyio's UDP socket, on asyncio's own loop or on uvloop."""

from __future__ import annotations

import anyio
from anyio.abc import SocketAttribute
from datagrams import enlarge
from serving import Arguments, parser, ready

LARGER_THAN_ASYNCIOS_BUFFER = 1 << 20  # bytes


class DatagramArguments(Arguments):
    """The options of this script."""

    free_once: bool


async def main(args: DatagramArguments) -> None:
    async with await anyio.create_udp_socket(local_host="127.0.0.1", local_port=args.port) as udp:
        enlarge(udp.extra(SocketAttribute.raw_socket))
        if args.free_once:
            bytes(LARGER_THAN_ASYNCIOS_BUFFER)  # after that malloc() does not map each buffer of its own
        ready()
        async for packet, (host, port) in udp:
            await udp.sendto(packet, host, port)


if __name__ == "__main__":
    options = parser(loops=("asyncio", "uvloop"))
    options.add_argument("--free-once", action="store_true", help="allocate and free 1 MiB first")
    args = options.parse_args(namespace=DatagramArguments())
    anyio.run(main, args, backend_options={"use_uvloop": args.loop == "uvloop"})
