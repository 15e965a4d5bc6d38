"""A real HTTP proxy before a real S3 server, which fails as it is told to.

    with FaultyS3(server) as s3:
        s3.rule = lambda asked: Fault("status") if asked.times == 1 else None

Paths, headers and bodies go through unchanged, so signatures hold: clients sign for the proxy's
own address, and that is the host that the server is told.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote

import aiohttp
import pytest
import s3fs
from aiohttp import web
from tenacity import wait_none
from yarl import URL

from pipeline import s3_client, storage

Kind = Literal[
    "status",  # refused with `status` and `code`; the server is not asked
    "reset",  # no answer; the server is not asked
    "reset after",  # no answer, although the server has done it
    "reset body",  # reset after `share` of the body
    "cut body",  # closed in order, but after `share` of the body
    "stall",  # nothing for `seconds`
    "stall body",  # nothing for `seconds` after `share` of the body
    "break upload",  # the server is sent `share` of the request's body, then reset
]


@dataclass(frozen=True)
class Fault:
    """One way to fail."""

    kind: Kind
    status: int = 503
    code: str = "SlowDown"
    share: float = 0.5
    seconds: float = 3600.0


@dataclass(frozen=True)
class Asked:
    """A request: `key` is `bucket/key` in plain letters, `times` counts equal ones from 1."""

    method: str
    key: str
    query: dict[str, str]
    times: int


@dataclass
class Answered:
    """A request and what became of it; `status` is None where no answer went out whole."""

    method: str
    key: str
    query: dict[str, str]
    fault: Fault | None
    status: int | None = None


Rule = Callable[[Asked], Fault | None]


def nothing(asked: Asked) -> Fault | None:
    return None


def once(fault: Fault, *methods: str) -> Rule:
    """Every request of these methods fails the first time."""

    def rule(asked: Asked) -> Fault | None:
        return fault if asked.method in methods and asked.times == 1 else None

    return rule


def at_random(seed: int, share: float, faults: list[Fault]) -> Rule:
    """`share` of all requests fails; the same requests with the same seed, in any order."""

    def rule(asked: Asked) -> Fault | None:
        words = f"{seed} {asked.method} {asked.key} {sorted(asked.query.items())} {asked.times}"
        chance = random.Random(hashlib.sha256(words.encode()).digest())
        return chance.choice(faults) if chance.random() < share else None

    return rule


class FaultyS3:
    """The proxy, in a thread of its own."""

    def __init__(self, server: str) -> None:
        self.rule: Rule = nothing
        self.requests: list[Answered] = []
        self._server = server
        self._times: Counter[tuple[str, str]] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> FaultyS3:
        self._thread.start()
        self.endpoint: str = self._run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def heal(self) -> None:
        """No more faults, and no memory of what was asked."""
        self.rule = nothing
        self.requests.clear()
        self._times.clear()

    def faults(self) -> Counter[str]:
        """How often each kind of fault was met."""
        return Counter(answered.fault.kind for answered in self.requests if answered.fault)

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _open(self) -> str:
        self._session = aiohttp.ClientSession(
            auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None)
        )
        application = web.Application(client_max_size=2**30)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0]
        return f"http://{host}:{port}"

    async def _close(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        path, _, query = request.raw_path.partition("?")
        key, pairs = unquote(path).lstrip("/"), dict(parse_qsl(query, keep_blank_values=True))
        self._times[request.method, request.raw_path] += 1
        times = self._times[request.method, request.raw_path]
        fault = self.rule(Asked(request.method, key, pairs, times))
        record = Answered(request.method, key, pairs, fault)
        self.requests.append(record)
        response = await self._answer(request, body, fault)
        if response is not None:
            record.status = response.status
            return response
        if request.transport is not None:
            if fault is None or fault.kind != "cut body":
                _without_lingering(request.transport)
            request.transport.close()
        return web.Response()  # Goes nowhere: the connection is closed.

    async def _answer(
        self, request: web.Request, body: bytes, fault: Fault | None
    ) -> web.StreamResponse | None:
        """The whole answer, or None where the connection is to be reset."""
        kind = fault.kind if fault else None
        if fault is None:
            return await self._forward(request, body)
        if kind == "status":
            return _refusal(request, fault)
        if kind == "stall":
            await asyncio.sleep(fault.seconds)
        elif kind == "break upload":
            await self._break(request, body, fault.share)
        elif kind == "reset after":
            await self._forward(request, body)
        elif kind != "reset" and request.method != "HEAD":  # Which has no body to break off.
            await self._answer_partly(request, body, fault)
        return None

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        async with self._session.request(
            request.method,
            URL(self._server + request.raw_path, encoded=True),
            headers=_headers(request),
            data=io.BytesIO(body) if body else None,
            skip_auto_headers=("Content-Type", "User-Agent", "Accept", "Accept-Encoding"),
            allow_redirects=False,
        ) as answer:
            response = web.Response(status=answer.status, body=await answer.read())
            for name, value in answer.headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    response.headers[name] = value
            if request.method == "HEAD" and "Content-Length" in answer.headers:
                response = web.Response(status=answer.status, headers=answer.headers)
            return response

    async def _answer_partly(self, request: web.Request, body: bytes, fault: Fault) -> None:
        whole = await self._forward(request, body)
        data = whole.body if isinstance(whole.body, bytes) else b""
        partly = web.StreamResponse(status=whole.status, headers=whole.headers)
        partly.content_length = len(data)
        await partly.prepare(request)
        if data:
            await partly.write(data[: int(len(data) * fault.share)])
        if fault.kind == "stall body":
            await asyncio.sleep(fault.seconds)

    async def _break(self, request: web.Request, body: bytes, share: float) -> None:
        async def part() -> AsyncIterator[bytes]:
            yield body[: int(len(body) * share)]
            raise ConnectionAbortedError

        headers = {**_headers(request), "Content-Length": str(len(body))}
        url = URL(self._server + request.raw_path, encoded=True)
        try:
            async with self._session.request(request.method, url, headers=headers, data=part()):
                pass
        except (aiohttp.ClientError, ConnectionAbortedError):
            pass


def _headers(request: web.Request) -> dict[str, str]:
    dropped = ("connection", "transfer-encoding", "content-length", "expect")
    return {name: value for name, value in request.headers.items() if name.lower() not in dropped}


def _refusal(request: web.Request, fault: Fault) -> web.Response:
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{fault.code}</Code><Message>As the test says.</Message></Error>"
    )
    body = b"" if request.method == "HEAD" else text.encode()
    return web.Response(status=fault.status, body=body, content_type="application/xml")


def _without_lingering(transport: asyncio.Transport) -> None:
    # A connection that is closed so ends with an RST.
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def this_process_through(env: dict[str, str]) -> Iterator[FaultyS3]:
    """A proxy before the server of `env`, which this process uses, without waits between retries.

    An answer that stalls for a second is given up.
    """
    quick = s3_client._CLIENT | {"read_timeout": 1}
    with FaultyS3(env["AWS_ENDPOINT_URL"]) as faulty, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        here = {"AWS_ENDPOINT_URL": faulty.endpoint, "AWS_EC2_METADATA_DISABLED": "true"}
        for name, value in (env | here).items():
            patch.setenv(name, value)
        patch.setattr(s3_client, "_CLIENT", quick)
        patch.setattr(s3_client.PATIENTLY, "wait", wait_none())
        patch.setattr(s3_client.BRIEFLY, "wait", wait_none())
        _forget_clients()
        yield faulty
    _forget_clients()


def _forget_clients() -> None:
    storage._storage.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
