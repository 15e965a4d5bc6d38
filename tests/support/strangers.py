"""Who knocks at what Ray listens on, without its token or with it."""

from __future__ import annotations

import contextlib
import http.client
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import ray.core.generated

GENERATED = Path(next(iter(ray.core.generated.__path__)))
# Of the object manager, Ray's Python has no description.
OTHERS = ("/ray.rpc.ObjectManagerService/Push", "/ray.rpc.ObjectManagerService/Pull")
PATIENCE_S = 10.0


def methods() -> list[str]:
    """Everything that can be asked of Ray by gRPC."""
    text = "".join(path.read_text() for path in GENERATED.glob("*_pb2_grpc.py"))
    return sorted({*OTHERS, *re.findall(r"'(/ray\.[\w./]+)'", text)})


@dataclass(frozen=True)
class Door:
    """An address on which something listens."""

    host: str
    port: int

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


def doors(family: Iterable[psutil.Process]) -> set[Door]:
    """Where any of these processes listens."""
    found = set()
    for process in family:
        with contextlib.suppress(psutil.Error):
            for each in process.net_connections("inet"):
                if each.status == psutil.CONN_LISTEN:
                    found.add(Door(each.laddr.ip.removeprefix("::ffff:"), each.laddr.port))
    return found


def knock(door: Door, token: str | None = None) -> Counter[str]:
    """Asks everything there is to ask, with empty questions, and counts the answers.

    Returns:
        Of HTTP, the status of one request for a page that everyone may not see, or `metrics`; of
        gRPC, the status of each method that is known there.
    """
    host = "127.0.0.1" if door.host in ("0.0.0.0", "::") else door.host
    bearer = None if token is None else f"Bearer {token}"
    try:
        return Counter([_over_http(host, door.port, bearer)])
    except http.client.HTTPException:
        return _over_grpc(f"{host}:{door.port}", bearer)


def _over_http(host: str, port: int, bearer: str | None) -> str:
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=PATIENCE_S)) as http_:
        http_.request("GET", "/api/jobs/", headers={"Authorization": bearer} if bearer else {})
        answer = http_.getresponse()
        return "metrics" if answer.read().startswith(b"# HELP") else str(answer.status)


def _over_grpc(address: str, bearer: str | None) -> Counter[str]:
    answers: Counter[str] = Counter()
    metadata = [("authorization", bearer)] if bearer else []
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        for method in methods():
            try:
                channel.unary_unary(method)(b"", timeout=PATIENCE_S, metadata=metadata)
                answers["OK"] += 1
            except grpc.RpcError as error:
                answers[error.code().name] += 1
    del answers["UNIMPLEMENTED"]
    return answers
