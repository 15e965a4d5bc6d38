"""Whether the Ray cluster that a run joins lets strangers in: tried, as one of them would."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final

from pipeline.errors import ClusterError, UsageError

# Any question to Ray's head (its GCS) would do; this one is about no node, and changes nothing.
_QUESTION: Final = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_PATIENCE_S: Final = 10.0
_LISTENS: Final = "0A"
_TABLES: Final = ("/proc/net/tcp", "/proc/net/tcp6")  # The other is not there without IPv6.


def refuse_open_cluster(head: str, dashboard: str | None, *, insecure: bool) -> None:
    """Refuses a cluster that is open beyond this machine.

    A process of Ray's that no token protects runs any code for whoever reaches it. Machines that
    join a head that asks for one must have it too, so that the head's answer goes for all.

    Args:
        head: Host and port of Ray's head (its GCS).
        dashboard: Those of the dashboard, which takes jobs; None if there is none.
        insecure: Only warn, on standard error.

    Raises:
        UsageError: It asks for no token, on an address that others may reach.
        ClusterError: Whether it does cannot be told.
    """
    try:
        if _asks_for_a_token(head):
            return
    except ClusterError as error:
        if not insecure:
            raise ClusterError(f"{error}; --insecure-ray joins it nevertheless") from error
        _warn(str(error))
        return
    reached = _beyond_loopback(head) or (dashboard and _beyond_loopback(dashboard))
    if not reached:
        return
    fault = (
        f"the Ray cluster at {head} asks for no token, and listens on {reached}: whoever reaches "
        "that may run code on its machines"
    )
    if not insecure:
        raise UsageError(
            f"{fault}; start Ray on all of them with RAY_AUTH_MODE=token and one token (ray "
            "get-auth-token --generate), or say --insecure-ray if nobody else reaches them"
        )
    _warn(fault)


def _warn(fault: str) -> None:
    print(f"patchflow: WARNING: {fault} (--insecure-ray)", file=sys.stderr)


def _asks_for_a_token(head: str) -> bool:
    """Whether a question without one is refused.

    Raises:
        ClusterError: There is neither an answer nor a refusal.
    """
    import grpc  # noqa: PLC0415 (Ray's, and as slow to import)

    with _channel(head) as channel:
        try:
            channel.unary_unary(_QUESTION)(b"", timeout=_PATIENCE_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return True
            raise ClusterError(
                f"the Ray cluster at {head} does not say whether it asks for a token: "
                f"{error.code().name}"
            ) from error
    return False


def _channel(head: str) -> Any:
    """A way to Ray's head that no token goes by.

    A certificate does where Ray asks for one, which is not enough: Ray's HTTP, by which every
    machine takes jobs, asks for tokens only.
    """
    import grpc  # noqa: PLC0415
    from ray._common.tls_utils import load_certs_from_env  # noqa: PLC0415

    options = [("grpc.enable_http_proxy", 0)]
    if os.environ.get("RAY_USE_TLS", "").lower() not in ("1", "true"):
        return grpc.insecure_channel(head, options)
    chain, key, root = load_certs_from_env()  # type: ignore[no-untyped-call]
    return grpc.secure_channel(head, grpc.ssl_channel_credentials(root, key, chain), options)


def _beyond_loopback(address: str) -> str | None:
    """Where others than this machine reach what listens at `address`; None if nowhere.

    Ray listens on every interface, but where its own address is 127.0.0.1: that it is another
    one of 127.0.0.0/8 says nothing.
    """
    host, _, port = address.rpartition(":")
    try:
        own = ip_address(host.strip("[]"))
    except ValueError:
        return address
    if not own.is_loopback:
        return address
    listening = (found for table in _TABLES for found in _listening(table, int(port)))
    found = next((found for found in listening if not found.is_loopback), None)
    if found is None:
        return None
    return f"[{found}]:{port}" if found.version == 6 else f"{found}:{port}"


def _listening(table: str, port: int) -> Iterator[IPv4Address | IPv6Address]:
    """The addresses of this machine on which something listens at `port`, as the kernel has it."""
    path = Path(table)
    for line in path.read_text().splitlines()[1:] if path.exists() else ():
        _, local, _, state, *_ = line.split()
        host, _, number = local.partition(":")
        if state == _LISTENS and int(number, 16) == port:
            yield _address(host)


def _address(host: str) -> IPv4Address | IPv6Address:
    """An address as `/proc/net/tcp` has it: words of four bytes, each in the machine's order."""
    words = (bytes.fromhex(host[at : at + 8]) for at in range(0, len(host), 8))
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    found = ip_address(packed)
    return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found
