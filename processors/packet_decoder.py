"""A stream's packets through its decoder, in one thread and up to the first damage."""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from processors.decode import check_size
from processors.errors import DecodeError
from processors.video_file import VideoFile
from processors.video_index import packets_with_data

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Decoders that leave out those frames only that no other one refers to, in whatever layer it is.
_LEAVES_OUT_UNREFERENCED: Final = frozenset(["h264", "mpeg1video", "mpeg2video", "mpeg4"])


class PacketDecoder:
    """The frames of a stream, in the order in which the decoder gives them.

    Attributes:
        next_packet: The packet to be decoded next, counted from 0.
        floor: Frames with earlier timestamps are dropped. Decoders may give frames from before the
            packet that they began with, made of what they did not see.
        wanted: Timestamps of the frames that count; others are not decoded where nothing depends
            on them. None for all.
        damage: What ended the decoding before the last packet.
    """

    def __init__(self, file: VideoFile, *, first_packet: int, floor: int | None) -> None:
        self.next_packet = 0
        self.floor = floor
        self.wanted: Container[int] | None = None
        self.damage: DecodeError | None = None
        self._file = file
        self._container, stream = file.open()
        self._codec = stream.codec_context
        self._packets = packets_with_data(self._container, stream)
        self._frames: deque[VideoFrame] = deque()
        self._is_at_end = False
        self._was_wanted = True
        self._pass_over(first_packet)

    def peek(self) -> VideoFrame | None:
        """The next frame, or None when there are no more."""
        while not self._frames and not self._is_at_end:
            self._decode_packet()
        return self._frames[0] if self._frames else None

    def pop(self) -> VideoFrame:
        """Takes the frame that was peeked at."""
        return self._frames.popleft()

    def skip_to(self, packet: int, *, floor: int) -> None:
        """Goes on with a later packet, as if the stream began there."""
        self._pass_over(packet)
        reorder_depth = self._codec.reorder_depth
        self._codec.flush_buffers()
        self._codec.reorder_depth = reorder_depth  # what was learned of it goes with the buffers
        self._frames.clear()
        self.floor = floor

    def close(self) -> None:
        """Lets go of the decoder and the file."""
        self._frames.clear()
        self._container.close()

    def _pass_over(self, packet: int) -> None:
        with self._file.errors():
            while self.next_packet < packet:
                next(self._packets)
                self.next_packet += 1

    def _decode_packet(self) -> None:
        try:
            with self._file.errors():
                packet = next(self._packets, None)
                self._is_at_end = packet is None
                self.next_packet += 1
                if packet is not None:
                    self._leave_out_unreferenced(packet)
                self._accept(self._codec.decode(packet))
        except DecodeError as error:
            if error.code in ("too_large", "decoder_out_of_memory"):
                raise
            if not self._is_at_end:
                self._drain()
            self.damage = self.damage or error

    def _drain(self) -> None:
        """Takes the frames that were whole, and held back for their order, before the damage."""
        self._is_at_end = True
        with suppress(DecodeError), self._file.errors():
            self._accept(self._codec.decode(None))

    def _leave_out_unreferenced(self, packet: Packet[VideoStream]) -> None:
        if self._codec.name not in _LEAVES_OUT_UNREFERENCED:
            return
        is_wanted = self.wanted is None or packet.pts in self.wanted
        # It may be the second field of the frame that the packet before it began.
        self._codec.skip_frame = "DEFAULT" if is_wanted or self._was_wanted else "NONREF"
        self._was_wanted = is_wanted

    def _accept(self, frames: list[VideoFrame]) -> None:
        for frame in frames:
            if self.floor is not None and frame.pts is not None and frame.pts < self.floor:
                continue
            check_size(frame.width, frame.height, max_pixels=self._file.max_pixels)
            if frame.is_corrupt:
                self._is_at_end = True
                raise DecodeError("corrupt", f"{self._file.video_format}: a frame is damaged")
            self._frames.append(frame)
