"""``BatchedPackets``: many packets with one system call, recvmmsg(2) and sendmmsg(2). Linux, UDP.

The socket module has neither call, so they are made through ctypes, on memory that is laid out once:
for each packet of a batch a struct mmsghdr, its iovecs, and a slot. In a slot stand, one behind the other,
the sender's address, the ancillary data and the beginning of the packet; the rest of a large packet
goes to an overflow area whose pages are only touched by large packets::

    slot    | name, 32 | time, 32 (if asked for) | packet info, 32 or 40 | data, 2048 |
              \\_______________ the origin, as bytes ________________/

That makes an origin one slice of memory, and an answer the origin with other data behind it: it is
copied to a slot of the sending side as it is, from where the name is taken as the destination and the
packet info as the source.

Beside the plain way this saves a system call, the parsing of addresses and ancillary data, and their
Python objects for each packet: it takes less than half the time. Python's lock is held during the calls,
which do not block and take some 30 us: given up, it would have to be waited for, for up to
5 ms (``sys.getswitchinterval()``) where other threads compute.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import socket
import struct
import sys
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from asyncserver.ancillary import (
    IP_PKTINFO,
    IPV4_INFO,
    IPV6_INFO,
    IPV6_PKTINFO,
    TIMESPEC,
    NetworkError,
    PacketInfo,
    parse_ancillary,
    source_control,
)
from asyncserver.checks import wrong_data
from asyncserver.endpoints import Endpoint, IPEndpoint
from asyncserver.errors import PacketTooLargeError
from asyncserver.packets import BAD_SOURCE, BATCH, TRIES, Bytes, Packets, sockaddr_to
from asyncserver.peers import SocketAddress

__all__ = ["BatchedPackets", "can_batch"]

T = TypeVar("T")

# Answers that are sent together. More would let the first wait for the handlers of all the others.
_OUT = 16
_NAME = 32
_SMALL = 2048

# struct msghdr and mmsghdr as the kernel has them on 64-bit machines, and the place of the fields that the
# kernel writes, counted in 32-bit words.
_HEADER = struct.Struct("@PI4xPNPNi4xI4x")
_WORDS = _HEADER.size // 4
_CONTROL_LENGTH, _FLAGS, _LENGTH = 10, 12, 14
_IOVEC = struct.Struct("@PN")
_CMSG = struct.Struct("@Nii")
# Where the source stands in struct in_pktinfo.
_SOURCE = 4
_TIMESTAMP = 35
# SO_TIMESTAMPING, SO_RXQ_OVFL, SO_RCVMARK, SO_RCVPRIORITY: what they tell stands before the packet info, for
# which there would be no room. An adopted socket may have one of them on.
_OTHER_MESSAGES = (37, 40, 75, 82)


def can_batch(sock: socket.socket) -> bool:
    """Whether the system, the machine's memory layout and the socket are of the kind that is known here."""
    return (
        sys.platform.startswith("linux")
        and sys.byteorder == "little"
        and struct.calcsize("P") == 8
        and _HEADER.size == 64
        and sock.family in (socket.AF_INET, socket.AF_INET6)
        and _recvmmsg is not None
        and _sendmmsg is not None
    )


def _system_call(name: str, *arguments: Any) -> Any:
    try:
        function = getattr(ctypes.PyDLL(None, use_errno=True), name)
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = arguments
    return function


_recvmmsg = _system_call(
    "recvmmsg", ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p
)
_sendmmsg = _system_call("sendmmsg", ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)


class _Memory:
    """Zeroed memory that costs nothing until it is touched, and its address."""

    def __init__(self, size: int) -> None:
        self.bytes = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))


class BatchedPackets(Packets):
    """An origin is a piece of a slot: name, time, packet info."""

    # Declared again, because pyright takes what is added to in a subclass for something else.
    sent: int
    bytes_sent: int
    send_errors: int

    def __init__(
        self,
        sock: socket.socket,
        max_packet_size: int,
        *,
        number: int,
        timestamps: bool,
        report: Callable[[NetworkError], None],
    ) -> None:
        super().__init__(sock, max_packet_size, number=number, timestamps=timestamps, report=report)
        for option in _OTHER_MESSAGES:
            with contextlib.suppress(OSError):  # An older kernel, which does not have it.
                sock.setsockopt(socket.SOL_SOCKET, option, 0)
        self._prefix = number.to_bytes(4, "big")
        self._fd = sock.fileno()
        is_ipv4 = self.family == socket.AF_INET
        self._name_size = 16 if is_ipv4 else 28
        info = IPV4_INFO if is_ipv4 else IPV6_INFO
        self._info_at = _NAME + (_space(TIMESPEC.size) if timestamps else 0)
        self._head = self._info_at + _space(info.size)
        self._control_size = self._head - _NAME
        self._timestamps = timestamps
        # The first packets may have come before the kernel was asked for their packet info, which then lacks
        # the source of an answer, for IPv4.
        self._is_early = is_ipv4
        # Where the address that the packet was sent to stands in an origin.
        begin = self._info_at + _CMSG.size + (8 if is_ipv4 else 0)
        self._local = slice(begin, begin + (4 if is_ipv4 else 16))
        self._stride = self._head + _SMALL
        self._out: list[bytes] = []
        self._lay_out_receiving()
        self._lay_out_sending()

    def _lay_out_receiving(self) -> None:
        self._laid_out_for = size = self.max_packet_size
        overflow = max(0, size - _SMALL)
        self._slots = _Memory(self._stride * BATCH)
        self._overflow = _Memory(max(1, overflow * BATCH))
        self._overflow_size = overflow
        self._iovecs = _Memory(2 * _IOVEC.size * BATCH)
        self._headers = _Memory(_HEADER.size * BATCH)
        headers: list[bytes] = []
        iovecs: list[bytes] = []
        for index in range(BATCH):
            slot = self._slots.address + index * self._stride
            iovecs.append(_IOVEC.pack(slot + self._head, min(size, _SMALL)))
            iovecs.append(_IOVEC.pack(self._overflow.address + index * overflow, overflow))
            iovec = self._iovecs.address + 2 * _IOVEC.size * index
            headers.append(
                _HEADER.pack(slot, _NAME, iovec, 2 if overflow else 1, slot + _NAME, self._control_size, 0, 0)
            )
        self._iovecs.bytes[:] = b"".join(iovecs)
        self._fresh_headers = b"".join(headers)
        self._headers.bytes[:] = self._fresh_headers
        self._words = memoryview(self._headers.bytes).cast("I")

    def _lay_out_sending(self) -> None:
        self._out_slots = _Memory(self._stride * _OUT)
        self._out_iovecs = _Memory(_IOVEC.size * _OUT)
        self._out_headers = _Memory(_HEADER.size * _OUT)
        headers: list[bytes] = []
        iovecs: list[bytes] = []
        for index in range(_OUT):
            slot = self._out_slots.address + index * self._stride
            iovecs.append(_IOVEC.pack(slot + self._head, 0))
            iovec = self._out_iovecs.address + _IOVEC.size * index
            control = slot + self._info_at
            headers.append(
                _HEADER.pack(slot, self._name_size, iovec, 1, control, self._head - self._info_at, 0, 0)
            )
        self._out_iovecs.bytes[:] = b"".join(iovecs)
        self._out_headers.bytes[:] = b"".join(headers)
        self._out_lengths = memoryview(self._out_iovecs.bytes).cast("Q")

    # --- receiving ---

    def receive(self, make: Callable[[Any, bytes, Any, bool], T], owner: object) -> list[T]:
        """See ``Packets``."""
        if self._laid_out_for != self.max_packet_size:
            self._lay_out_receiving()
        headers = self._headers
        count = _recvmmsg(self._fd, headers.address, BATCH, socket.MSG_DONTWAIT, None)
        if count <= 0:
            count = self._receive_after_error() if count < 0 else 0
            if not count:
                return []
        words, end = self._words, count * _WORDS
        lengths = words[_LENGTH:end:_WORDS].tolist()
        flags = words[_FLAGS:end:_WORDS].tolist()
        controls = words[_CONTROL_LENGTH:end:_WORDS].tolist()
        self.received += count
        self.bytes_received += sum(lengths)
        headers.bytes[: count * _HEADER.size] = self._fresh_headers[: count * _HEADER.size]
        is_common = controls.count(self._control_size) == count and max(lengths) <= _SMALL
        if not is_common or any(flags) or self._is_early:
            return self._make_uncommon(make, owner, lengths, flags, controls)
        slots, stride, head = self._slots.bytes, self._stride, self._head
        found: list[T] = []
        at = 0
        for length in lengths:
            data_at = at + head
            found.append(make(owner, slots[data_at : data_at + length], slots[at:data_at], False))
            at += stride
        return found

    def _receive_after_error(self) -> int:
        """An error of an earlier packet was told instead; once these are read, packets are."""
        tries = 0
        for _ in range(BATCH):
            number = ctypes.get_errno()
            if number == errno.EAGAIN:
                self.take_errors()  # The socket is "readable" for as long as there is one.
                return 0
            tries += number != errno.EINTR
            if number != errno.EINTR and not self.take_errors() and tries >= TRIES:
                raise OSError(number, os.strerror(number))
            count = _recvmmsg(self._fd, self._headers.address, BATCH, socket.MSG_DONTWAIT, None)
            if count >= 0:
                return int(count)
        return 0

    def _make_uncommon(
        self,
        make: Callable[[Any, bytes, Any, bool], T],
        owner: object,
        lengths: list[int],
        flags: list[int],
        controls: list[int],
    ) -> list[T]:
        """Some of the packets are large, cut off, early, or have unusual ancillary data."""
        slots, overflow = self._slots.bytes, self._overflow.bytes
        is_early = self._is_early
        if is_early:  # They come one after the other: if the last one has a source, so will all that follow.
            source = (len(lengths) - 1) * self._stride + self._info_at + _CMSG.size + _SOURCE
            self._is_early = slots[source : source + 4] == bytes(4)
        found: list[T] = []
        for index, (length, flag, control) in enumerate(zip(lengths, flags, controls, strict=True)):
            at = index * self._stride
            data = slots[at + self._head : at + self._head + min(length, _SMALL)]
            if length > _SMALL:
                beginning = index * self._overflow_size
                data += overflow[beginning : beginning + length - _SMALL]
            origin = slots[at : at + self._head]
            if is_early or control != self._control_size or flag & socket.MSG_CTRUNC:
                origin = self._in_order(origin[:_NAME], origin[_NAME : _NAME + control])
            truncated = bool(flag & socket.MSG_TRUNC)
            self.truncated += truncated
            found.append(make(owner, data, origin, truncated))
        return found

    def _in_order(self, name: bytes, control: bytes) -> bytes:
        """The origin of a packet whose ancillary data is not laid out as always."""
        found = list(_control_messages(control))
        times = [
            content for level, kind, content in found if (level, kind) == (socket.SOL_SOCKET, _TIMESTAMP)
        ]
        time = _message(socket.SOL_SOCKET, _TIMESTAMP, (times or [bytes(TIMESPEC.size)])[0])
        kinds = ((socket.IPPROTO_IP, IP_PKTINFO), (socket.IPPROTO_IPV6, IPV6_PKTINFO))
        infos = [each for each in found if each[:2] in kinds]
        if infos and self.family == socket.AF_INET:
            infos = [(*infos[0][:2], _with_source(infos[0][2]))]
        info = _message(*(infos or source_control(self.family, _any_source(name)))[0])
        return name + (time if self._timestamps else b"") + info

    def sockaddr_of(self, origin: Any) -> SocketAddress:
        """See ``Packets``."""
        port = int.from_bytes(origin[2:4], "big")
        if self.family == socket.AF_INET:
            return socket.inet_ntoa(origin[4:8]), port
        host = socket.inet_ntop(socket.AF_INET6, origin[8:24])
        flow_info = int.from_bytes(origin[4:8], "big") & 0xFFFFF
        return host, port, flow_info, int.from_bytes(origin[24:28], sys.byteorder)

    def info_of(self, origin: Any) -> PacketInfo:
        """See ``Packets``."""
        return parse_ancillary(_control_messages(origin[_NAME:]))

    def key_of(self, origin: Any) -> Hashable:
        """See ``Packets``."""
        if self.family == socket.AF_INET:
            key: bytes = self._prefix + origin[2:8]
        else:
            key = self._prefix + origin[2:4] + origin[8:28]
        local: bytes = origin[self._local]
        return key + local

    def key_for(self, peer: IPEndpoint, local: str | None) -> Hashable:
        """See ``Packets``."""
        origin = bytearray(self.origin_to(peer))
        if local is not None:
            origin[self._local] = socket.inet_pton(self.family, local)
        return self.key_of(bytes(origin))

    def origin_to(self, peer: Endpoint) -> Any:
        """See ``Packets``."""
        sockaddr = sockaddr_to(peer, self.family, ipv6_only=self._is_ipv6_only)
        port = struct.pack("=H2s", self.family, sockaddr[1].to_bytes(2, "big"))
        if self.family == socket.AF_INET:
            name = port + socket.inet_aton(sockaddr[0])
        else:
            _, _, flow_info, scope_id = sockaddr
            packed = socket.inet_pton(socket.AF_INET6, sockaddr[0])
            name = port + flow_info.to_bytes(4, "big") + packed + scope_id.to_bytes(4, sys.byteorder)
        return self._in_order(name.ljust(_NAME, b"\0"), b"")

    # --- sending ---

    def put(self, data: Bytes, origin: Any) -> bool:
        """See ``Packets``."""
        if self.blocked:
            return False
        out = self._out
        try:
            packet = origin + data
        except TypeError:
            raise wrong_data(data, "reply()") from None
        if len(packet) > self._stride:
            self.flush()
            return not out and self.send_one(data, *self._in_words(origin))
        out.append(packet)
        if not self.corked or len(out) == _OUT:
            self.flush()
        return True

    def _in_words(self, origin: Any) -> tuple[Any, list[tuple[int, int, bytes]]]:
        """As the socket module writes it."""
        return self.sockaddr_of(origin), source_control(self.family, self.info_of(origin))

    def flush(self) -> None:
        """See ``Packets``."""
        out = self._out
        if not out:
            self.blocked: bool = False
            return
        slots, stride, head, lengths = self._out_slots.bytes, self._stride, self._head, self._out_lengths
        at, index = 0, 1
        for packet in out:
            size = len(packet)
            slots[at : at + size] = packet
            lengths[index] = size - head
            at += stride
            index += 2
        total = len(out)
        sent = _sendmmsg(self._fd, self._out_headers.address, total, socket.MSG_DONTWAIT)
        if sent == total:
            self._sent(out)
            self.blocked = False
            out.clear()
        else:
            self._flush_rest(sent)

    def give_up(self) -> None:
        """See ``Packets``."""
        self.send_errors += len(self._out)
        self._out.clear()

    def _sent(self, packets: list[bytes]) -> None:
        self.sent += len(packets)
        self.bytes_sent += sum(map(len, packets)) - self._head * len(packets)

    def _flush_rest(self, sent: int) -> None:
        """The kernel has taken ``sent`` of the packets, or -1; the next one has, or will have, an error."""
        out = self._out
        done = tries = 0
        self.blocked = False
        while True:
            if sent > 0:
                self._sent(out[done : done + sent])
                done += sent
                tries = 0
            elif (number := ctypes.get_errno()) == errno.EAGAIN:
                self._block()
            elif number in BAD_SOURCE:
                done += self._send_singly(out[done])
            elif number != errno.EINTR:
                tries += 1
                if (not self.take_errors() and tries > 1) or tries == TRIES:
                    self.note_refused(number, self.sockaddr_of(out[done]))
                    done += 1
                    tries = 0
            if self.blocked or done == len(out):
                break
            address = self._out_headers.address + done * _HEADER.size
            sent = _sendmmsg(self._fd, address, len(out) - done, socket.MSG_DONTWAIT)
        del out[:done]

    def _send_singly(self, packet: bytes) -> bool:
        """What it answers was sent to a group, perhaps, from whose address nothing can be sent."""
        try:
            return self.send_one(packet[self._head :], *self._in_words(packet[: self._head]))
        except PacketTooLargeError:
            return True  # It is counted.


def _with_source(content: bytes) -> bytes:
    """The packet info of IPv4, with the source of an answer also where the kernel has not told it."""
    info = parse_ancillary([(socket.IPPROTO_IP, IP_PKTINFO, content)])
    source = socket.inet_aton(info.answer_from or "0.0.0.0")
    return IPV4_INFO.pack(info.interface, source, socket.inet_aton(info.local or "0.0.0.0"))


def _any_source(name: bytes) -> PacketInfo:
    """No source address, in the form that the kernel takes for this destination (it looks at mapped ones)."""
    is_mapped = name[8:20] == bytes(10) + b"\xff\xff"
    return PacketInfo(answer_from="::ffff:0.0.0.0" if is_mapped else None)


def _space(size: int) -> int:
    """CMSG_SPACE of cmsg(3): with its header, padded to eight bytes."""
    return _CMSG.size + (size + 7 & ~7)


def _message(level: int, kind: int, content: bytes) -> bytes:
    header = _CMSG.pack(_CMSG.size + len(content), level, kind)
    return (header + content).ljust(_space(len(content)), b"\0")


def _control_messages(control: bytes) -> list[tuple[int, int, bytes]]:
    """As ``socket.recvmsg`` gives them."""
    found: list[tuple[int, int, bytes]] = []
    at = 0
    while at + _CMSG.size <= len(control):
        length, level, kind = _CMSG.unpack_from(control, at)
        if not _CMSG.size <= length <= len(control) - at:
            break
        found.append((level, kind, control[at + _CMSG.size : at + length]))
        at += length + 7 & ~7
    return found
