"""Files to pixels through a decoder process: the parent's side.

Who is to blame when a process is lost is decided here. Answers come in the order of the files, so
the oldest file that lacks some of its answer is the one that the process was at. The others are
sent again to a fresh process, unharmed.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import ClassVar, Final, NoReturn, Self

from processors.errors import DecodeError
from processors.media import MediaOptions
from processors.sandbox.decoding import Decoding
from processors.sandbox.lockdown import CALL_FILTER, hide_memory
from processors.sandbox.memory import SharedMemory
from processors.sandbox.processes import Child
from processors.sandbox.protocol import (
    BUFFERS,
    MAX_FRAMES,
    RELEASE,
    SLOTS,
    GarbageError,
    Reply,
    Start,
    Work,
)
from processors.sandbox.supervisor import SandboxError, Supervisor

_ATTEMPTS: Final = 2
"""Times that one file may cost a process, before it is given up."""

_FILES: Final = 1000
"""Files after which a process is replaced: one that a file took over lies about those after it."""


@dataclass(frozen=True, kw_only=True)
class DecoderLimits:
    """What one file may cost.

    Attributes:
        timeout_s: Seconds that it may keep the caller, all attempts together: waiting for each
            answer, reading it, and ending a process that was lost. What the caller does in between
            does not count, nor do the starts of fresh processes.
        memory_bytes: Private memory that decoding may take. Memory that is shared with the parent
            comes on top: two files and two frames, 128 MiB where they are ordinary ones, at most
            ``2 * max_file_bytes + 6 * max_pixels`` bytes while they are there.
        max_file_bytes: Largest file that will be handed in.
    """

    timeout_s: float = 300.0
    memory_bytes: int = 1536 * 2**20
    max_file_bytes: int = 2**30

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")


class _LostError(Exception):
    """The process is gone. ``failure`` is what that says of the file: None for nothing."""

    def __init__(self, failure: DecodeError | None) -> None:
        super().__init__(failure)
        self.failure = failure


class Decoder:
    """Decodes files in a process that they may crash; Linux only.

    A context manager, for one thread at a time. While the process decodes one file, the caller
    fetches others and works on the pixels of the one before::

        with Decoder(options=options) as decoder:
            ahead = decoder.submit(first)
            for data in others:
                now, ahead = ahead, decoder.submit(data)
                with now:
                    for frame in now.frames(): ...

    Attributes:
        enforced: What the process is denied, in plain words, and whether this machine denies it.

    Args:
        limits: What one file may cost.
        options: What is decoded of a file.

    Raises:
        SandboxError: If decoder processes cannot be had here.
        ValueError: If more frames may be chosen of a clip than can be told of, 4096.
    """

    _template_module: ClassVar[str] = "processors.sandbox.template"

    def __init__(
        self, *, limits: DecoderLimits | None = None, options: MediaOptions | None = None
    ) -> None:
        if sys.platform != "linux":
            raise SandboxError(f"decoder processes need Linux, and this is {sys.platform}")
        self._limits = limits or DecoderLimits()
        self._options = options or MediaOptions()
        sampling = self._options.sampling
        if sampling is not None and sampling.most_frames > MAX_FRAMES:
            raise ValueError(
                f"{MAX_FRAMES} frames of a clip are the most, got {sampling.most_frames}"
            )
        self._memory = SharedMemory(
            max_file_bytes=self._limits.max_file_bytes, max_pixels=self._options.max_pixels
        )
        start = Start(memory_bytes=self._limits.memory_bytes, options=self._options)
        self._supervisor = Supervisor(self._template_module, start, self._memory)
        self._outstanding: list[Decoding] = []
        self._submitted = 0
        self._files = 0  # Sent to the present process.
        self._frames = 0  # Received from it.
        try:
            self.enforced = self._supervisor.start().enforced
        except SandboxError:
            self.close()
            raise
        if not self.enforced[CALL_FILTER]:
            hide_memory()  # It holds credentials, and some system calls read other processes'.

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes and drops what is outstanding."""
        self._outstanding.clear()
        self._supervisor.close()
        self._memory.close()

    def submit(self, data: bytes | memoryview) -> Decoding:
        """Begins to decode a file, and returns at once.

        Args:
            data: All of it. It is copied.

        Raises:
            RuntimeError: If two are outstanding already.
            SandboxError: If decoder processes cannot be had any more.
            ValueError: If the file is larger than ``max_file_bytes``.
        """
        if len(self._outstanding) == BUFFERS:
            raise RuntimeError(f"{BUFFERS} files are outstanding: finish or close one first")
        if len(data) > self._limits.max_file_bytes:
            raise ValueError(f"max_file_bytes is {self._limits.max_file_bytes}, got {len(data)}")
        if self._files >= _FILES and not self._outstanding:
            self._kill_child()
        taken = {decoding.work.buffer for decoding in self._outstanding}
        buffer = next(number for number in range(BUFFERS) if number not in taken)
        self._memory.buffers.view(buffer, len(data))[:] = data
        self._submitted += 1
        decoding = Decoding(self, Work(item=self._submitted, buffer=buffer, size=len(data)))
        self._outstanding.append(decoding)
        try:
            self._busy_child()
        except SandboxError:
            self._remove(decoding)
            raise
        return decoding

    def advance(self, decoding: Decoding) -> None:
        """Waits for the next step of an answer; where the process is lost, of another one's.

        Raises:
            DecodeError: See ``Decoding.info``, and for the rest too.
        """
        if decoding not in self._outstanding:
            raise RuntimeError("this file is closed")
        while self._outstanding[0] is not decoding:
            self.drop(self._outstanding[0])
        error: DecodeError | None = None
        while error is None:
            try:
                reply = self._receive(decoding)
            except _LostError as lost:
                failure = lost.failure
                if failure is None:
                    continue  # If that goes on, the supervisor gives up.
                if failure.code == "decode_timeout" or decoding.attempts == _ATTEMPTS:
                    error = failure
                else:
                    decoding.attempts += 1
            else:
                if reply.error is None:
                    return
                error = reply.error
        self._remove(decoding)
        self._supervisor.reset()
        raise DecodeError(error.code, error.message, attempts=decoding.attempts)

    def drop(self, decoding: Decoding) -> None:
        """Lets go of a file. A process that is not through with it is ended: it was for nothing."""
        if decoding not in self._outstanding:
            return
        if decoding.is_complete:
            self._release(decoding)
            self._supervisor.reset()
        else:
            self._kill_child()
        self._remove(decoding)

    def _remove(self, decoding: Decoding) -> None:
        self._outstanding.remove(decoding)
        self._memory.buffers.trim(decoding.work.buffer, decoding.work.size)

    def _busy_child(self) -> Child:
        """The process, told of all that is outstanding."""
        child = self._supervisor.child or self._supervisor.start()
        for decoding in self._outstanding:
            if not decoding.is_sent:
                decoding.is_sent = True
                child.send(decoding.work.to_bytes())
                self._files += 1
        return child

    def _receive(self, decoding: Decoding) -> Reply:
        child = self._busy_child()
        began = time.monotonic()
        try:
            self._release(decoding)
            return self._next_reply(child, decoding)
        finally:
            decoding.spent_s += time.monotonic() - began

    def _next_reply(self, child: Child, decoding: Decoding) -> Reply:
        try:
            message = child.receive(self._limits.timeout_s - decoding.spent_s)
            if not message:
                raise _LostError(self._end_child())
            reply = Reply.from_bytes(message, options=self._options)
            decoding.accept(reply, self._options)
        except TimeoutError:
            reason = f"it took longer than {self._limits.timeout_s:g} s"
            self._lose_child(child, DecodeError("decode_timeout", reason))
        except GarbageError as error:
            reason = f"the decoder sent garbage: {error}"
            self._lose_child(child, DecodeError("decoder_crashed", reason))
        if reply.error is not None and reply.error.code == "decoder_crashed":
            self._lose_child(child, reply.error)
        if reply.frame is not None:
            decoding.receive(self._memory.slots.frame(self._frames % SLOTS, *reply.frame))
            self._frames += 1
        return reply

    def _release(self, decoding: Decoding) -> None:
        size = decoding.release()
        if size is not None and self._supervisor.child is not None:
            self._memory.slots.trim((self._frames - 1) % SLOTS, size)
            self._supervisor.child.send(RELEASE)

    def _lose_child(self, child: Child, failure: DecodeError) -> NoReturn:
        child.kill()
        self._end_child()
        raise _LostError(failure)

    def _kill_child(self) -> None:
        if self._supervisor.child is not None:
            self._supervisor.child.kill()
            self._end_child()

    def _end_child(self) -> DecodeError | None:
        """Waits for its end; what is outstanding goes to the next one."""
        failure = self._supervisor.end()
        self._files = self._frames = 0
        for decoding in self._outstanding:
            decoding.restart()
        for slot in range(SLOTS):
            self._memory.slots.trim(slot)
        return failure
