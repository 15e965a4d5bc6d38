"""Encoders whose processes end, and a Ray that starts them again."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray
import torch

from pipeline.encode import Encode, EncodeConfig
from pipeline.notes import Notes
from tests.support.encoding import DEFAULTS, Grid


class Ended(BaseException):
    """Stands for the end of a process."""


class Ray:
    """Stands for Ray: answers at once, starts ended processes again and repeats their calls."""

    def __init__(self) -> None:
        self.notes = Notes(1)
        self.process: Encode | None = None
        self.ended = 0
        self._ends = threading.Event()
        self._one_at_a_time = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        def remote(*args: Any, **options: Any) -> Any:
            with self._one_at_a_time:
                if self._ends.is_set():
                    raise Ended
                return getattr(self.notes, name)(*args, **options)

        return SimpleNamespace(remote=remote)

    def embed(self, rows: pa.Table, **options: Any) -> pa.Table:
        while True:
            try:
                if self.process is None:
                    self.process = Encode(EncodeConfig(**{**DEFAULTS, **options}), self)
                return self.process(rows)
            except Ended:
                self.process = None
                self.ended += 1
                assert self.ended < 100

    def embed_together(self, blocks: list[pa.Table], **options: Any) -> list[pa.Table]:
        """All blocks at once, each in a call of its own.

        The end of a process is that of all of its calls: what they have not told, they do again.
        """
        config = EncodeConfig(**{**DEFAULTS, "calls": len(blocks), **options})
        found: dict[int, pa.Table] = {}
        while left := [n for n in range(len(blocks)) if n not in found]:
            self.process = Encode(config, self)
            threads = [_Call(self.process, blocks[n], self._ends) for n in left]
            for thread in threads:
                thread.start()
            for n, thread in zip(left, threads, strict=True):
                thread.join(60)
                assert not thread.is_alive()
                if isinstance(thread.error, Exception):
                    raise thread.error
                if thread.error is None:
                    found[n] = thread.out
            self.ended += self._ends.is_set()
            self._ends.clear()
            assert self.ended < 100
        return [found[n] for n in range(len(blocks))]


class _Call(threading.Thread):
    def __init__(self, process: Encode, rows: pa.Table, ends: threading.Event) -> None:
        super().__init__(daemon=True)
        self._process, self._rows, self._ends = process, rows, ends
        self.out: pa.Table | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.out = self._process(self._rows)
        except BaseException as error:
            self.error = error
            if isinstance(error, Ended):
                self._ends.set()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Ray:
    def end(code: int) -> None:
        raise Ended

    here = SimpleNamespace(
        current_actor=None,
        get_actor_id=lambda: "actor",
        get_task_id=lambda: "task",
        get_node_id=lambda: "0123456789",
        get_accelerator_ids=lambda: {"GPU": ["3"]},
    )
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(socket, "gethostname", lambda: "machine")
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
    return Ray()


def kill(*killers: Grid) -> Callable[[torch.Tensor, list[Grid]], torch.Tensor]:
    """Ends the process that has any of these items in a pack."""

    def change(tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        if {(1, h, w) for _, h, w in killers} & set(grids):
            raise Ended
        return tokens

    return change


def failed(table: pa.Table) -> list[int]:
    return [n for n, code in enumerate(table["error_code"].to_pylist()) if code]
