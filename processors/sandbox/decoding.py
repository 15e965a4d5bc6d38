"""One file on its way through the decoder process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from processors.sandbox.protocol import GarbageError, Reply, Work, promised_frames
from processors.sizes import reduced_size, reduction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from processors.media import MediaInfo, MediaOptions
    from processors.sandbox.decoder import Decoder


class Decoding:
    """One file on its way, made by ``Decoder.submit``; a context manager that closes it.

    Attributes:
        attempts: How often it was begun: those that cost a process, and the last one.
        work: What its process is told.
        spent_s: Seconds that count, see ``DecoderLimits``.
        is_sent: Whether the present process was told.
    """

    def __init__(self, decoder: Decoder, work: Work) -> None:
        self.attempts = 1
        self.work = work
        self.spent_s = 0.0
        self.is_sent = False
        self._decoder = decoder
        self._info: MediaInfo | None = None
        self._has_info = False  # From the present process; the other two likewise.
        self._received = 0
        self._pixels: NDArray[np.uint8] | None = None
        self._iterator = self._iterate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def info(self) -> MediaInfo:
        """Waits until it is known what the file holds.

        Raises:
            DecodeError: As ``open_media`` does, or with code ``decode_timeout``,
                ``decoder_crashed`` or ``decoder_out_of_memory``. It tells its ``attempts``.
            RuntimeError: If the file was closed before it was asked for.
            SandboxError: If decoder processes cannot be had any more.
        """
        if self._info is None:
            self._decoder.advance(self)
        assert self._info is not None
        return self._info

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """The picture, or the chosen frames of a clip; the same iterator whenever it is asked for.

        Returns:
            Views of uint8 ``[height, width, 3]``, RGB, each valid until the next one is asked for
            or the file is closed, which it is after the last one. A picture may be reduced, if it
            was to be. It raises as ``info`` does.
        """
        return self._iterator

    def close(self) -> None:
        """Lets go of the file, wherever it is; so does asking for one that was submitted later."""
        self._decoder.drop(self)

    @property
    def is_complete(self) -> bool:
        """Whether all that was promised has come."""
        return self._has_info and self._received == promised_frames(self.info())

    def restart(self) -> None:
        """Forgets what a lost process sent; frames handed out already will be passed over."""
        self.is_sent = False
        self._has_info = False
        self._received = 0
        self._pixels = None

    def accept(self, reply: Reply, options: MediaOptions) -> None:
        """Checks an answer against those before it, and against what was to be decoded.

        Raises:
            GarbageError: If it does not go with them.
        """
        if reply.item != self.work.item:
            raise GarbageError(f"an answer about file {reply.item}, not {self.work.item}")
        if reply.error is not None:
            return
        if self._has_info == (reply.info is not None):
            raise GarbageError("a description that is missing or there twice")
        if reply.info is not None:
            if self._info not in (None, reply.info):
                raise GarbageError("another description than before")
            sizes = _first_frame_sizes(reply.info, options)
            if reply.frame not in sizes:
                raise GarbageError(f"a first frame of {reply.frame}, not {sizes[0]}")
            self._info = reply.info
            self._has_info = True

    def receive(self, pixels: NDArray[np.uint8]) -> None:
        """Takes the next frame."""
        self._pixels = pixels
        self._received += 1

    def release(self) -> int | None:
        """Gives up the frame it holds, and says how many bytes that was; None if it holds none."""
        if self._pixels is None:
            return None
        size, self._pixels = self._pixels.nbytes, None
        return size

    def _iterate(self) -> Iterator[NDArray[np.uint8]]:
        for number in range(promised_frames(self.info())):
            while self._received <= number:
                self._decoder.advance(self)
            if self._pixels is None:
                raise RuntimeError("this file is closed")
            yield self._pixels
        self.close()


def _first_frame_sizes(info: MediaInfo, options: MediaOptions) -> list[tuple[int, int]]:
    """What a first frame may have for height and width: its own, or those of a reduced picture."""
    own = (info.height, info.width)
    if info.kind != "image" or options.reduce_for is None:
        return [own]
    return [own, reduced_size(*own, reduction(*own, options.reduce_for))]
