"""Redis servers as operators run them: clusters, Sentinels, replicas, full ones, with TLS."""

import datetime as dt
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis import Redis, RedisError

from service.cli import processes
from service.cli.processes import find_binary
from tests.running import until


@contextmanager
def server(folder: Path, *options: str, sentinel: bool = False, tls: bool = False) -> Iterator[int]:
    """The port of a Redis without a file, started with more options of its command line."""
    folder.mkdir(parents=True, exist_ok=True)
    port = _cluster_port() if "--cluster-enabled" in options else processes.free_port()
    if sentinel:
        (folder / "sentinel.conf").write_text(f"port {port}\n")
        command: Sequence[str] = [str(folder / "sentinel.conf"), "--sentinel"]
    elif tls:
        command = ["--save", "", "--port", "0", "--tls-port", str(port), *certificate(folder)]
    else:
        command = ["--save", "", "--port", str(port)]
    process = processes.spawn(
        [find_binary(), *command, "--dir", str(folder), *options],
        log=folder / "redis.log",
    )
    try:
        try:
            until(lambda: listens(port, process), seconds=30, what="the start of Redis")
        except AssertionError:
            if tls and "Bad directive" in (folder / "redis.log").read_text():
                pytest.skip("this Redis was built without TLS; Debian's redis-server has it")
            raise
        yield port
    finally:
        processes.end(process, grace_seconds=5)


def _cluster_port() -> int:
    """A port that is free, with the one 10,000 above it, which a cluster's bus takes."""
    while True:
        port = processes.free_port()
        with socket.socket() as probe, suppress(OSError, OverflowError):
            probe.bind(("127.0.0.1", port + 10_000))
            return port


def listens(port: int, process: "subprocess.Popen[bytes]") -> bool:
    """Whether something answers, with an error perhaps."""
    assert process.poll() is None, "Redis has ended"
    client = Redis(port=port, retry=None, socket_timeout=1, socket_connect_timeout=1)
    try:
        client.ping()
    except RedisError as error:
        return "refused" not in str(error)
    finally:
        client.close()
    return True


def certificate(folder: Path) -> list[str]:
    """Options of a server with a certificate that nobody knows."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    public, private = folder / "cert.pem", folder / "key.pem"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    return [
        *("--tls-cert-file", str(public), "--tls-key-file", str(private)),
        *("--tls-ca-cert-file", str(public), "--tls-auth-clients", "no"),
    ]


def fill(redis: Redis) -> None:
    """Let a Redis have less memory than it uses: every write that may need more is refused."""
    redis.config_set("maxmemory", 1)
