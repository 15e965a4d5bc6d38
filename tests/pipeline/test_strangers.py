"""A cluster that asks nobody for a token is told by its own answer, and by where it listens."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipeline import strangers
from pipeline.errors import ClusterError, UsageError
from pipeline.strangers import refuse_open_cluster

Serve = Callable[..., int]
CODES = grpc.StatusCode


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Heads that answer every question with one status; returns the port of each."""
    with ExitStack() as stack:

        def start(code: grpc.StatusCode, tls: grpc.ServerCredentials | None = None) -> int:
            def answer(question: bytes, context: Any) -> bytes:
                if code is not CODES.OK:
                    context.abort(code, "")
                return b""

            class Handler(grpc.GenericRpcHandler):
                def service(self, details: Any) -> Any:
                    return grpc.unary_unary_rpc_method_handler(answer)

            server = grpc.server(ThreadPoolExecutor(1), handlers=[Handler()])
            add = partial(server.add_secure_port, server_credentials=tls)
            port: int = (add if tls else server.add_insecure_port)("127.0.0.1:0")
            server.start()
            stack.callback(lambda: server.stop(None).wait())
            return port

        yield start


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> grpc.ServerCredentials:
    """What a head of Ray's serves by that asks for a certificate, of one that a driver has too."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ray")])
    hosts = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now()
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(hosts, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    chain = made.public_bytes(pem)
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none)
    monkeypatch.setenv("RAY_USE_TLS", "1")
    for name_, text in (("CA_CERT", chain), ("SERVER_CERT", chain), ("SERVER_KEY", secret)):
        (tmp_path / name_).write_bytes(text)
        monkeypatch.setenv(f"RAY_TLS_{name_}", str(tmp_path / name_))
    return grpc.ssl_server_credentials([(secret, chain)], chain, require_client_auth=True)


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has the kernel say that something listens elsewhere: lines of /proc/net/tcp."""

    def say(lines: str) -> None:
        (tmp_path / "tcp").write_text(f"  sl  local_address rem_address   st\n{lines}")
        monkeypatch.setattr(strangers, "_TABLES", (str(tmp_path / "tcp"),))

    return say


def line(host: str, port: int, state: str = "0A") -> str:
    return f"   0: {host}:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 0\n"


EVERYWHERE, EVERYWHERE_6 = "00000000", "0" * 32
LOOPBACK, LOOPBACK_2 = "0100007F", "0200007F"
LOOPBACK_6, MAPPED = "0" * 24 + "01000000", "0000000000000000FFFF00000100007F"
PUBLIC, PUBLIC_MAPPED = "020200C0", "0000000000000000FFFF0000020200C0"


def test_a_head_that_asks_for_a_token_is_joined_wherever_it_listens(
    serve: Serve, tables: Callable[[str], None]
) -> None:
    port = serve(CODES.UNAUTHENTICATED)
    tables(line(EVERYWHERE, port))
    refuse_open_cluster(f"127.0.0.1:{port}", None, insecure=False)


def test_a_head_that_listens_on_loopback_alone_needs_none(serve: Serve) -> None:
    port = serve(CODES.OK)
    refuse_open_cluster(f"127.0.0.1:{port}", f"127.0.0.1:{port}", insecure=False)


@pytest.mark.parametrize("host", [LOOPBACK, LOOPBACK_2, LOOPBACK_6, MAPPED])
def test_no_loopback_address_is_open_to_others(
    serve: Serve, tables: Callable[[str], None], host: str
) -> None:
    port = serve(CODES.OK)
    others = line(EVERYWHERE, port, "01") + line(EVERYWHERE, port + 1)  # Connected; another port.
    tables(line(host, port) + others)
    refuse_open_cluster(f"127.0.0.1:{port}", None, insecure=False)


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        (EVERYWHERE, "0.0.0.0"),
        (EVERYWHERE_6, "[::]"),
        (PUBLIC, "192.0.2.2"),
        (PUBLIC_MAPPED, "192.0.2.2"),
    ],
)
def test_a_head_that_asks_for_none_is_refused_where_others_reach_it(
    serve: Serve,
    tables: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    host: str,
    reached: str,
) -> None:
    port = serve(CODES.OK)
    tables(line(LOOPBACK, port) + line(host, port))
    with pytest.raises(UsageError) as caught:
        refuse_open_cluster(f"127.0.0.1:{port}", None, insecure=False)
    told = str(caught.value)
    assert told.startswith(f"the Ray cluster at 127.0.0.1:{port} asks for no token, and listens on")
    assert f" {reached}:{port}: " in told and "RAY_AUTH_MODE=token" in told and "\n" not in told
    assert capsys.readouterr().err == ""
    refuse_open_cluster(f"127.0.0.1:{port}", None, insecure=True)
    warned = capsys.readouterr().err
    assert warned.startswith("patchflow: WARNING: the Ray cluster at 127.0.0.1")
    assert f"{reached}:{port}" in warned and warned.count("\n") == 1


def test_a_dashboard_that_others_reach_is_as_bad(
    serve: Serve, tables: Callable[[str], None]
) -> None:
    port = serve(CODES.OK)
    tables(line(LOOPBACK, port) + line(EVERYWHERE, 8265))
    with pytest.raises(UsageError, match=r"listens on 0\.0\.0\.0:8265: whoever"):
        refuse_open_cluster(f"127.0.0.1:{port}", "127.0.0.1:8265", insecure=False)


@pytest.mark.parametrize("address", ["192.0.2.2:6379", "[fd00::2]:6379", "head.example:6379"])
def test_what_is_not_on_loopback_is_reached_by_others(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(strangers, "_asks_for_a_token", lambda head: False)
    with pytest.raises(UsageError, match="asks for no token") as caught:
        refuse_open_cluster(address, None, insecure=False)
    assert f"listens on {address}: " in str(caught.value)


def test_a_head_that_does_not_say_is_not_joined(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = serve(CODES.UNAVAILABLE)
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    with pytest.raises(ClusterError, match="asks for a token: UNAVAILABLE; --insecure-ray"):
        refuse_open_cluster(f"127.0.0.1:{port}", None, insecure=False)
    refuse_open_cluster(f"127.0.0.1:{port}", None, insecure=True)
    assert "WARNING: the Ray cluster at 127.0.0.1" in capsys.readouterr().err


def test_a_certificate_does_not_make_up_for_a_token(
    serve: Serve,
    certificate: grpc.ServerCredentials,
    tables: Callable[[str], None],
) -> None:
    """Ray's HTTP, by which every machine takes jobs, asks for none."""
    asking, open_ = (serve(code, certificate) for code in (CODES.UNAUTHENTICATED, CODES.OK))
    tables(line(EVERYWHERE, asking) + line(EVERYWHERE, open_))
    refuse_open_cluster(f"127.0.0.1:{asking}", None, insecure=False)
    with pytest.raises(UsageError, match=rf"listens on 0\.0\.0\.0:{open_}: whoever"):
        refuse_open_cluster(f"127.0.0.1:{open_}", None, insecure=False)


def test_a_kernel_without_ipv6_says_where_something_listens_all_the_same(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = serve(CODES.OK)
    monkeypatch.setattr(strangers, "_TABLES", ("/proc/net/tcp", str(tmp_path / "tcp6")))
    refuse_open_cluster(f"127.0.0.1:{port}", None, insecure=False)


def test_the_kernel_is_asked_where_something_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = {
            str(host) for table in strangers._TABLES for host in strangers._listening(table, port)
        }
    assert found == {"127.0.0.1"}
