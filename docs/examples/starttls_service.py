"""A line protocol in the manner of SMTP that takes secrets only under TLS: by STARTTLS, or from the start.

Make a certificate, and run it from the repository's directory::

    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost -keyout key.pem -out cert.pem
    python -m asyncserver serve docs/examples/starttls_service.py:starttls_service \\
        tcp://127.0.0.1:2525 tls+tcp://127.0.0.1:4465 --tls-cert cert.pem --tls-key key.pem

Try both::

    openssl s_client -quiet -crlf -starttls smtp -connect 127.0.0.1:2525
    openssl s_client -quiet -crlf -connect 127.0.0.1:4465

and then type ``EHLO me``, ``NOTE something secret``, ``QUIT``. (openssl says that the certificate is
self-signed, and goes on; ``-CAfile cert.pem`` makes it a trusted one.)
"""

from __future__ import annotations

from asyncserver import Stream

MOST_IN_A_LINE = 510
"""Bytes, without the line end (RFC 5321, section 4.5.3.1.4)."""


async def starttls_service(stream: Stream) -> None:
    """Serve one client until it quits."""
    session = Session(stream)
    await session.reply("220 notes ready")
    # A line that was sent too early, together with STARTTLS, is not carried into the TLS session:
    # start_tls() raises, and the connection ends. There is nothing to be caught here.
    async for line in stream.lines(MOST_IN_A_LINE):
        verb, _, argument = line.decode("ascii", "replace").partition(" ")
        if verb.upper() == "QUIT":
            await session.reply("221 goodbye")
            return
        await session.obey(verb.upper(), argument.strip())


class Session:
    """What a client has said so far."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.client = ""
        self.notes: list[str] = []

    @property
    def is_secure(self) -> bool:
        """Whether this runs under TLS, however it came to that."""
        return self.stream.ssl_object is not None

    async def reply(self, *lines: str) -> None:
        """Send a reply of one or several lines."""
        code, last = lines[0][:3], len(lines) - 1
        texts = [f"{code}{'-' if number < last else ' '}{text[4:]}\r\n" for number, text in enumerate(lines)]
        await self.stream.send("".join(texts).encode())

    async def obey(self, verb: str, argument: str) -> None:
        """Carry out one command."""
        match verb:
            case "EHLO":
                await self.greet(argument)
            case "STARTTLS":
                await self.start_tls()
            case "NOTE":
                await self.take_note(argument)
            case "NOOP":
                await self.reply("250 ok")
            case _:
                await self.reply("500 unknown command")

    async def greet(self, client: str) -> None:
        """Say hello and what can be done."""
        self.client = client or "stranger"
        offers = ["250 NOTE"] if self.is_secure else ["250 STARTTLS"]
        await self.reply(f"250 hello {self.client}", *offers)

    async def start_tls(self) -> None:
        """Change to TLS, and forget what was said before: anybody may have said it (RFC 3207, 4.2)."""
        if self.is_secure:
            await self.reply("503 TLS is on already")
            return
        await self.reply("220 go ahead")
        await self.stream.start_tls()
        self.client = ""

    async def take_note(self, text: str) -> None:
        """Keep a secret."""
        if not self.is_secure:
            await self.reply("530 STARTTLS first")
        elif not self.client:
            await self.reply("503 EHLO first")
        else:
            self.notes.append(text)
            await self.reply(f"250 {len(self.notes)} notes kept")
