"""Keeps one decoder process, and says what the end of one means for the file that it was at."""

from __future__ import annotations

import os
import signal
from typing import Final

from processors.errors import DecodeError
from processors.sandbox.memory import SharedMemory
from processors.sandbox.processes import Child, Template, TemplateError
from processors.sandbox.protocol import OUT_OF_MEMORY_STATUS, Start

_FAILURES: Final = 3
"""Templates lost in a row, before that is an error."""


class SandboxError(RuntimeError):
    """Decoder processes cannot be had here; no fault of any file."""


class Supervisor:
    """One process at a time, from a template that is started anew when it is lost.

    Args:
        template_module: The template's program.
        start: What every process is told.
        memory: What it shares with this one.
    """

    def __init__(self, template_module: str, start: Start, memory: SharedMemory) -> None:
        self._template_module = template_module
        self._start = start
        self._memory = memory
        self._template: Template | None = None
        self._child: Child | None = None
        self._losses: list[TemplateError] = []  # since a file was decoded

    @property
    def child(self) -> Child | None:
        """The process, if there is one; it may have ended unnoticed."""
        return self._child

    def start(self) -> Child:
        """A fresh process, locked down and waiting for work.

        Raises:
            SandboxError: If templates were lost again and again, at a start or later.
        """
        assert self._child is None
        while len(self._losses) < _FAILURES:
            try:
                if self._template is None:
                    self._template = Template(self._template_module)
                self._child = self._template.start_child(self._start, self._memory)
            except TemplateError as error:
                self._lose_template(error)
            except OSError as error:  # No process, descriptor or memory is left for one.
                self._lose_template(TemplateError(f"it cannot be had: {error.strerror}"))
            else:
                return self._child
        last = self._losses[-1]
        self._losses.clear()  # Who asks again is given as many tries.
        raise SandboxError(f"decoder processes cannot be started: {last}") from last

    def end(self) -> DecodeError | None:
        """Ends the process, unless it has ended by itself, and waits for that.

        Returns:
            What its end says of the file that it was at; None if that says nothing, as when its
            template was killed, and it was with it.
        """
        assert self._template is not None
        assert self._child is not None
        child, self._child = self._child, None
        try:
            status = self._template.reap(child)
        except TemplateError as error:
            self._lose_template(error)
            return None
        if child.was_killed:
            return DecodeError("decoder_crashed", "the decoder went silent")
        return self._failure(status)

    def reset(self) -> None:
        """Forgets lost templates: a file was decoded since."""
        self._losses.clear()

    def close(self) -> None:
        """Ends all processes."""
        if self._child is not None:
            self._child.kill()
            self.end()
        if self._template is not None:
            self._template.close()
            self._template = None

    def _failure(self, status: int) -> DecodeError:
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            if name != "SIGKILL":
                return DecodeError("decoder_crashed", f"the decoder died of {name}")
            reason = "the decoder was killed, by the kernel for want of memory or by someone"
            return DecodeError("decoder_out_of_memory", reason)
        code = os.waitstatus_to_exitcode(status)
        if code == OUT_OF_MEMORY_STATUS:
            reason = f"it takes more than the limit of {self._start.memory_bytes} bytes of memory"
            return DecodeError("decoder_out_of_memory", reason)
        return DecodeError("decoder_crashed", f"the decoder exited with status {code}")

    def _lose_template(self, error: TemplateError) -> None:
        self._losses.append(error)
        if self._template is not None:
            self._template.close()
            self._template = None
