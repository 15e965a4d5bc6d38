"""A video file in memory, opened with PyAV so that it reaches nothing but its own bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

import av
import av.subtitles.codeccontext  # which PyAV itself does where it meets subtitles: too late
from av.codec.context import ThreadType
from av.error import DecoderNotFoundError, PatchWelcomeError
from av.stream import Discard, Disposition

from processors.decode import check_size
from processors.errors import DecodeError
from processors.formats import VideoFormat

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

_DEMUXERS: Final[dict[VideoFormat, str]] = {
    "ASF": "asf",
    "AVI": "avi",
    "FLV": "flv",
    "MP4": "mov",
    "MPEG-PS": "mpeg",
    "MPEG-TS": "mpegts",
    "Matroska": "matroska",
}
# Of FFmpeg's 300: those of cameras, phones, editors and the web, and of what these left behind. The
# others, of games and of laboratories, are what a stranger would look for holes in.
_DECODERS: Final = (
    *("h261", "h263", "h263p", "h264", "hevc", "vvc", "av1", "libdav1d"),
    *("vp3", "theora", "vp6", "vp6a", "vp6f", "vp7", "vp8", "vp9"),
    *("mpeg1video", "mpeg2video", "mpegvideo", "mpeg4"),
    *("msmpeg4v1", "msmpeg4v2", "msmpeg4", "wmv1", "wmv2", "wmv3", "vc1", "flv"),
    *("mjpeg", "mjpegb", "sp5x", "dvvideo", "dnxhd", "prores", "prores_raw", "apv", "aic", "cfhd"),
    *("ffv1", "ffvhuff", "huffyuv", "utvideo", "rawvideo", "v210", "png", "qtrle"),
    *("svq1", "svq3", "cinepak", "rpza", "msvideo1", "msrle", "rv10", "rv20", "rv30", "rv40"),
)
_MAX_STREAMS: Final = 1000
_STREAMS: Final[dict[VideoFormat, bytes]] = {"AVI": b"strl", "MP4": b"trak"}
"""What stands before each stream's headers."""
_PICTURES: Final = Disposition.attached_pic | Disposition.timed_thumbnails
_SEEK_FAILED: Final = -1
_MOST_PIXELS: Final = 2**31 - 1  # that FFmpeg takes as a limit


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoFile:
    """What is needed to open a video file, as often as it is decoded.

    Attributes:
        data: The whole file.
        video_format: Its container; no other is tried.
        max_pixels: Largest ``width * height`` of a frame.
    """

    data: bytes | memoryview
    video_format: VideoFormat
    max_pixels: int

    def open(self) -> tuple[InputContainer, VideoStream]:
        """Reads the headers, and finds the stream that players would show.

        The demuxer is named and alone on the white list, decoders are few there and none is for
        sound, no protocol is, and whatever a file asks to open beside itself is denied: a playlist
        that is called a video opens nothing. Decoders run in the calling thread.

        Raises:
            DecodeError: As ``VideoReader`` does.
        """
        container = self._read_headers()
        try:
            with self.errors():
                return container, self._prepare_stream(container)
        except DecodeError:
            container.close()
            raise

    @contextmanager
    def errors(self) -> Iterator[None]:
        """The one place where whatever PyAV raises becomes one of ours."""
        try:
            yield
        except DecodeError:
            raise
        except Exception as error:
            _raise_decode_error(error, video_format=self.video_format)

    def _read_headers(self, **options: str) -> InputContainer:
        demuxer = _DEMUXERS[self.video_format]
        fixed = {
            "format_whitelist": demuxer,
            "protocol_whitelist": "none",
            "max_streams": str(_MAX_STREAMS),
            "codec_whitelist": ",".join(_DECODERS),
        }
        with self.errors():
            try:
                return av.open(
                    _MemoryFile(self.data),
                    mode="r",
                    format=demuxer,
                    container_options=fixed | options,
                    # For what is decoded while the headers are read.
                    options={"max_pixels": str(self._max_coded_pixels), "threads": "1"},
                    metadata_errors="replace",
                    io_open=_deny,
                )
            except MemoryError:
                self._check_num_streams()
                raise

    def _check_num_streams(self) -> None:
        """Tells too many streams, which FFmpeg says memory is short for, from short memory."""
        name = _STREAMS.get(self.video_format)
        if name and sum(1 for _ in re.finditer(name, self.data)) > _MAX_STREAMS:
            raise DecodeError("too_large", f"{self.video_format}: more than {_MAX_STREAMS} streams")

    def _check_forgotten_size(self) -> None:
        """Refuses a stated size so far over the limit that FFmpeg takes it for none."""
        # Without a decoder nothing is held against the limit.
        with self._read_headers(codec_whitelist="none") as container:
            codec = _choose_stream(container, self.video_format).codec_context
            if codec.width and codec.height:
                check_size(codec.width, codec.height, max_pixels=self.max_pixels)

    @property
    def _max_coded_pixels(self) -> int:
        # Decoders count whole blocks, up to 64 pixels on each side more than is shown.
        return min(2 * self.max_pixels + 2**16, _MOST_PIXELS)

    def _prepare_stream(self, container: InputContainer) -> VideoStream:
        stream = _choose_stream(container, self.video_format)
        codec = stream.codec_context
        if codec is None:
            raise DecodeError(
                "unsupported_format", f"{self.video_format}: there is no decoder for its codec"
            )
        if codec.name not in _DECODERS:
            raise DecodeError(
                "unsupported_format",
                f"{self.video_format}: its codec, {codec.name}, is not decoded",
            )
        if codec.width and codec.height:
            check_size(codec.width, codec.height, max_pixels=self.max_pixels)
        else:
            self._check_forgotten_size()
        codec.thread_count = 1
        codec.thread_type = ThreadType.NONE
        codec.options = {"max_pixels": str(self._max_coded_pixels)}
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        return stream


class _MemoryFile:
    """Bytes as PyAV reads files, without a copy of them; without a name, which FFmpeg may open."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = data
        self._position = 0

    def read(self, size: int) -> bytes:
        chunk = bytes(self._data[self._position : self._position + size])
        self._position += len(chunk)
        return chunk

    def seek(self, offset: int, whence: int = 0) -> int:
        position = (0, self._position, len(self._data))[whence] + offset
        if position < 0:
            # What is raised here, PyAV raises at some later call.
            return _SEEK_FAILED
        self._position = position
        return position

    def tell(self) -> int:
        return self._position


def _deny(url: str, _flags: int, _options: dict[str, str]) -> NoReturn:
    raise PermissionError(f"it refers to {url!r}: files are read by themselves only")


def _choose_stream(container: InputContainer, video_format: VideoFormat) -> VideoStream:
    clips = [stream for stream in container.streams.video if not stream.disposition & _PICTURES]
    if not clips:
        kinds = {stream.type for stream in container.streams}
        found = ", ".join(sorted("cover art" if kind == "video" else kind for kind in kinds))
        found = f"only {found}" if found else "no streams"
        raise DecodeError("no_video_stream", f"{video_format}: found {found}")
    best = container.streams.best("video")
    return next((stream for stream in clips if stream is best), clips[0])


def _raise_decode_error(error: Exception, *, video_format: VideoFormat) -> NoReturn:
    # Without FFmpeg's number, and the name that the file does not have.
    detail = getattr(error, "strerror", None) or str(error) or type(error).__name__
    message = f"{video_format}: {detail}"
    if isinstance(error, MemoryError):
        raise DecodeError("decoder_out_of_memory", message) from error
    if isinstance(error, EOFError):
        raise DecodeError("truncated", message) from error
    unsupported = PermissionError, NotImplementedError, DecoderNotFoundError, PatchWelcomeError
    if isinstance(error, unsupported):
        raise DecodeError("unsupported_format", message) from error
    raise DecodeError("corrupt", message) from error
