"""A server that webhooks are sent to: it answers as it is told, and remembers what it was sent."""

import contextlib
import json
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from dbserve.webhooks.signing import signature
from tests.http_server import running


@dataclass(frozen=True)
class Sent:
    """One request."""

    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def message(self) -> dict[str, Any]:
        return json.loads(self.body)

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


class Receiver:
    """Answers with `codes`, one after the other, and with the last one from then on; holds while `hangs` is set."""

    def __init__(self, codes: Sequence[int], headers: dict[str, str]) -> None:
        self.sent: list[Sent] = []
        self.released = threading.Event()
        self.released.set()
        self._codes = list(codes)
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                code = receiver.take(
                    Sent(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                )
                receiver.released.wait()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.send_response(code)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("content-length", "5")
                    self.end_headers()
                    self.wfile.write(b"heard")

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"

    def take(self, sent: Sent) -> int:
        with self._lock:
            self.sent.append(sent)
            return self._codes.pop(0) if len(self._codes) > 1 else self._codes[0]

    def hang(self) -> None:
        """From now on nothing is answered."""
        self.released.clear()

    def topics(self) -> list[str]:
        return [sent.message["type"] for sent in self.sent]


def self_signed(name: str, directory: Path) -> tuple[Path, Path]:
    """A certificate for a host's name, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    places = directory / "certificate.pem", directory / "key.pem"
    places[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    places[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return places


@contextlib.contextmanager
def receiving(
    *codes: int, headers: dict[str, str] | None = None, tls: tuple[Path, Path] | None = None
) -> Iterator[Receiver]:
    """A receiver on this machine until the block is left; 200 unless it is told otherwise.

    `tls`: its certificate and key; then it speaks https.
    """
    receiver = Receiver(codes or (200,), headers or {})
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        receiver.server.socket = context.wrap_socket(receiver.server.socket, server_side=True)
        receiver.url = receiver.url.replace("http:", "https:")
    with running(receiver.server):
        try:
            yield receiver
        finally:
            receiver.released.set()


def signed(sent: Sent, secret: str) -> bool:
    """Whether it carries the signature that it must."""
    own = signature(secret, sent.id, int(sent.headers["webhook-timestamp"]), sent.body.decode())
    return sent.headers["webhook-signature"] == own
