"""A receiver of webhooks: a real TLS server on this machine, with a certificate of its own."""

import datetime as dt
import http.server
import ipaddress
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from service.webhooks.delivery import Sender

NAME = "hooks.example"
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


@dataclass
class Receiver:
    """What came in, and what is answered (the last answer again and again)."""

    port: int
    certificate: Path
    answers: list[int] = field(default_factory=lambda: [200])
    delay_seconds: float = 0.0
    seen: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    pages: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    """What GET answers, by path."""
    names: list[str | None] = field(default_factory=list)
    """What TLS was asked for (SNI)."""

    @property
    def url(self) -> str:
        """Where it listens, by its address."""
        return f"https://127.0.0.1:{self.port}/hook"


def _certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName(NAME), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "receiver.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


@pytest.fixture
def make_receiver(tmp_path: Path) -> Iterator[Callable[[], Receiver]]:
    """Starts receivers; all end with the test."""
    certificate = _certificate(tmp_path)
    servers = []

    def make() -> Receiver:
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.seen.append((self.path, dict(self.headers), body))
                time.sleep(receiver.delay_seconds)
                answers = receiver.answers
                status = answers.pop(0) if len(answers) > 1 else answers[0]
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", f"https://127.0.0.1:{receiver.port}/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self) -> None:
                receiver.seen.append((self.path, dict(self.headers), b""))
                status, headers, body = receiver.pages.get(self.path, (404, {}, b""))
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """A client that hangs up is none."""

        server = Server(("127.0.0.1", 0), Handler)
        receiver = Receiver(server.server_address[1], certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.sni_callback = lambda _sock, name, _context: receiver.names.append(name)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return receiver

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def receiver(make_receiver: Callable[[], Receiver]) -> Receiver:
    """One receiver, answering 200."""
    return make_receiver()


def trusting(receiver: Receiver, *, timeout_seconds: float = 30) -> Callable[[], Sender]:
    """A sender that trusts the receiver's certificate and may go to loopback."""

    def make() -> Sender:
        tls = ssl.create_default_context(cafile=str(receiver.certificate))
        return Sender(LOOPBACK, tls=tls, timeout_seconds=timeout_seconds)

    return make
