"""Encoded clips to RGB frames, with PyAV.

Everything here parses untrusted bytes. A limit on pixels is kept, but memory and time are not: run
it in a process that may be killed where the bytes are not your own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import groupby, repeat
from typing import TYPE_CHECKING, Final

import av

from processors.errors import DecodeError
from processors.formats import SNIFFED_BYTES, describe_content, sniff_video_format
from processors.metadata import VideoMetadata
from processors.truncation import is_cut, is_damaged
from processors.video_decoder import FrameDecoder
from processors.video_file import VideoFile
from processors.video_index import FrameIndex, PacketList, index_frames, read_packets
from processors.video_rgb import RgbConverter

if TYPE_CHECKING:
    import numpy as np
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

# Streams made to be joined and cut anywhere: the end of what is there is their end.
_ENDS_ANYWHERE: Final = ("MPEG-PS", "MPEG-TS")


class VideoReader:
    """A clip, of which any frames can be had in order.

    It opens MP4 (with MOV, M4V and 3GP), Matroska (with WebM), AVI, MPEG-TS, MPEG-PS, FLV and ASF
    (with WMV), told by their content, and decodes the stream that players would show. Opening it
    reads all packets once, so that the number of frames and their times are those of the frames
    that are shown, whatever the headers say: none that an edit list hides, none before the first
    that can be decoded, and time 0 is the first one's.

    Frames are named by index: the frame on display ``index / fps`` seconds from the start, which is
    the ``index``-th one wherever the frame rate is constant. ``fps`` is the average rate that the
    file states where the frames keep to it, and else their number over their time; ``duration`` is
    ``total_num_frames / fps``. Where the timestamps cannot be relied on, the frames are counted,
    and timed by the stated rate.

    What is cut or damaged is refused as far as the container or the decoder tells: a transport
    stream that lost packets is shorter, and VP9 and AV1 decode most damage to wrong pixels.

    Decoding is in the calling thread. It opens nothing and, after ``warm_up``, imports nothing.

    Attributes:
        metadata: Exact, where the file's own numbers may not be.
    """

    metadata: VideoMetadata

    def __init__(self, data: bytes | memoryview, *, max_pixels: int) -> None:
        """Opens a clip.

        Args:
            data: The whole file, which is not copied.
            max_pixels: Largest ``width * height`` of a frame.

        Raises:
            DecodeError: With code ``empty``, ``unsupported_format`` (no known container, or no
                decoder for what it holds), ``no_video_stream`` (cover art is none), ``too_large``
                (frames, more than ``MAX_PACKETS`` packets, or a thousand streams), ``truncated``,
                ``corrupt`` or ``decoder_out_of_memory``.
            ValueError: If ``max_pixels`` is not positive.
        """
        if max_pixels < 1:
            raise ValueError(f"max_pixels must be at least 1, got {max_pixels}")
        file = _identify(data, max_pixels=max_pixels)
        self._file = file
        self._index = _index(file)
        self._decoder = FrameDecoder(file, self._index)
        first = self._decoder.frame_at(0)
        with file.errors():
            self._converter = RgbConverter(first)
        timeline = self._index.timeline
        self.metadata = VideoMetadata(
            total_num_frames=timeline.num_frames,
            fps=timeline.fps,
            width=self._converter.width,
            height=self._converter.height,
            duration=timeline.duration_s,
            video_backend="pyav",
        )

    def timestamps(self, indices: Sequence[int]) -> list[float]:
        """When the frames are shown, in seconds from the clip's start.

        Raises:
            ValueError: As ``frames`` does.
        """
        positions = self._index.timeline.positions(indices)
        return [float(self._index.timeline.seconds[position]) for position in positions]

    def frames(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Decodes frames, and converts none but those.

        Args:
            indices: Ascending; an index may be there several times.

        Yields:
            uint8 ``[height, width, 3]``, RGB, upright: a frame for every index, valid until the
            next one is asked for. Rows may be padded.

        Raises:
            DecodeError: With code ``truncated`` where frames are missing or damaged, and what was
                found in the message; ``too_large`` or ``decoder_out_of_memory``.
            ValueError: If an index is no frame's, or they do not ascend.
        """
        return self._decode(self._index.timeline.positions(indices))

    def close(self) -> None:
        """Lets go of the decoder."""
        self._decoder.close()

    def _decode(self, positions: list[int]) -> Iterator[NDArray[np.uint8]]:
        # A frame that is wanted several times is converted once.
        runs = [(position, len(list(run))) for position, run in groupby(positions)]
        decoded = self._decoder.frames_at([position for position, _ in runs])
        for frame, (_, times) in zip(decoded, runs, strict=True):
            with self._file.errors():
                pixels = self._converter.convert(frame)
            yield from repeat(pixels, times)


def _identify(data: bytes | memoryview, *, max_pixels: int) -> VideoFile:
    head = bytes(data[:SNIFFED_BYTES])
    if not head:
        raise DecodeError("empty", "the file has no bytes")
    video_format = sniff_video_format(head)
    if video_format is None:
        raise DecodeError(
            "unsupported_format",
            "expected MP4, MOV, Matroska, WebM, AVI, MPEG-TS, MPEG-PS, FLV or WMV, "
            f"found {describe_content(head)}",
        )
    return VideoFile(data=data, video_format=video_format, max_pixels=max_pixels)


def _index(file: VideoFile) -> FrameIndex:
    try:
        container, stream = file.open()
    except DecodeError as error:
        is_header = error.code in ("corrupt", "no_video_stream", "unsupported_format")
        if is_header and is_cut(file.data, file.video_format):
            raise DecodeError("truncated", f"{error.message}; the file ends early") from error
        raise
    try:
        stated = _stated_length(file, container, stream)
        with file.errors():
            found = read_packets(container, stream)
            # AVI has the order of decoding only, from which FFmpeg cannot tell that of display.
            has_display_times = file.video_format != "AVI" or not stream.codec_context.has_b_frames
            index = index_frames(found, stream, has_display_times=has_display_times)
    finally:
        container.close()
    is_short = found.is_short and file.video_format not in _ENDS_ANYWHERE
    if is_short or is_cut(file.data, file.video_format):
        _check_length(file, found, index, stated)
    if index is None:
        raise DecodeError("corrupt", f"{file.video_format}: it shows no frame")
    if is_damaged(file.data, file.video_format):
        num_frames = index.timeline.num_frames
        raise DecodeError(
            "truncated",
            f"{file.video_format}: it is damaged, and {num_frames} frames of it can be read",
        )
    return index


def _stated_length(
    file: VideoFile, container: InputContainer, stream: VideoStream
) -> tuple[int, float] | None:
    """How many frames (0 where unknown) and seconds the headers promise."""
    if file.video_format == "AVI" and stream.frames and stream.average_rate:
        return stream.frames, float(stream.frames / stream.average_rate)
    if file.video_format == "MP4" and stream.frames and stream.duration and stream.time_base:
        return stream.frames, float(stream.duration * stream.time_base)
    if file.video_format == "Matroska" and container.duration:
        return 0, float(Fraction(container.duration, av.time_base))
    return None


def _check_length(
    file: VideoFile,
    found: PacketList,
    index: FrameIndex | None,
    stated: tuple[int, float] | None,
) -> None:
    """Refuses a cut file, unless all frames that it promises are there."""
    num_frames, end_s, frame_s = 0, 0.0, 0.0
    if index is not None:
        num_frames, end_s = index.timeline.num_frames, index.timeline.duration_s or 0.0
        frame_s = end_s / num_frames
    # The last frame on display need not be the last one in the file.
    if stated and found.num_whole >= stated[0] and end_s > stated[1] - frame_s / 2:
        return
    of_frames = f" of {stated[0]}" if stated and stated[0] else ""
    of_seconds = f" of {stated[1]:.1f} s" if stated else ""
    raise DecodeError(
        "truncated",
        f"{file.video_format}: it holds {num_frames}{of_frames} frames, "
        f"and ends at {end_s:.1f} s{of_seconds}",
    )
