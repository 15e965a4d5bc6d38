"""A file of any kind, by its content: one picture, or the chosen frames of a clip."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal, Protocol, get_args

from PIL import Image

from processors.animation import AnimationReader, is_animated
from processors.decode import DEFAULT_MAX_PIXELS, decode_image
from processors.errors import DecodeError
from processors.formats import (
    SNIFFED_BYTES,
    ImageFormat,
    describe_content,
    sniff_image_format,
    sniff_video_format,
)
from processors.metadata import VideoMetadata
from processors.orientation import Room
from processors.sampling import VideoFamily, VideoSampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from processors.options import ImageOptions

MediaKind = Literal["image", "video"]

MAX_SECONDS: Final = 1e9
"""What no clip lasts, three decades."""

_ANIMATED: Final = ("GIF", "PNG", "WEBP")


@dataclass(frozen=True, kw_only=True)
class MediaOptions:
    """What is decoded of a file.

    Attributes:
        max_pixels: Largest ``width * height`` of a picture or a frame.
        max_duration_s: Longest clip, in seconds.
        sampling: Which frames of a clip are wanted; None refuses clips.
        animated: What GIF, WebP and APNG files with several frames count as.
        reduce_for: What will resize pictures, if they may be decoded reduced, see ``decode_image``.
    """

    max_pixels: int = DEFAULT_MAX_PIXELS
    max_duration_s: float = MAX_SECONDS
    sampling: VideoSampling | None = None
    animated: MediaKind = "image"
    reduce_for: ImageOptions | None = None


@dataclass(frozen=True, kw_only=True)
class MediaInfo:
    """What a file holds, known before its pixels are; plain values, so that JSON can carry it.

    Attributes:
        kind: Picture or clip.
        height: Rows after orientation, of a clip's first frame. Of a picture, before reduction.
        width: Columns likewise.
        total_num_frames: Frames that a clip shows; None for pictures, as all that follows.
        duration_s: Seconds.
        indices: Frames chosen, counted from 0, ascending; the last one may be there twice.
        timestamps_s: When each of them is shown, in seconds from the clip's start.
    """

    kind: MediaKind
    height: int
    width: int
    total_num_frames: int | None = None
    duration_s: float | None = None
    indices: tuple[int, ...] | None = None
    timestamps_s: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Media:
    """A file that is being decoded.

    Attributes:
        info: What it is.
        frames: uint8 ``[height, width, 3]``, RGB: the picture, or a frame for every index, each
            valid until the next one is asked for. Raises ``DecodeError``.
    """

    info: MediaInfo
    frames: Iterator[NDArray[np.uint8]]


class _ClipReader(Protocol):
    metadata: VideoMetadata

    def timestamps(self, indices: Sequence[int]) -> list[float]: ...

    def frames(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]: ...

    def close(self) -> None: ...


def open_media(data: bytes | memoryview, options: MediaOptions, room: Room | None = None) -> Media:
    """Begins to decode a file; what it is, its content says.

    Memory and time are not limited here: run it in a process that may be killed where the bytes are
    not your own. After ``warm_up`` it opens and imports nothing.

    Args:
        data: The whole file; of a clip it is not copied.
        options: What is wanted of it.
        room: Where a picture's pixels go, as in ``decode_image``; a clip's are their own.

    Raises:
        DecodeError: As ``decode_image`` and ``VideoReader`` do; with code ``unsupported_format``
            for clips where ``sampling`` is None, ``too_large`` for those that last longer than
            ``max_duration_s``, and ``corrupt`` for those that give nothing to sample by, and for
            times over ``MAX_SECONDS`` or that run backwards.
    """
    head = bytes(data[:SNIFFED_BYTES])
    is_picture = sniff_image_format(head) is not None
    if is_picture and not _is_clip(data, options):
        image = decode_image(
            bytes(data), max_pixels=options.max_pixels, room=room, reduce_for=options.reduce_for
        )
        info = MediaInfo(kind="image", height=image.height, width=image.width)
        return Media(info=info, frames=iter([image.pixels]))
    if head and not is_picture and sniff_video_format(head) is None:
        raise DecodeError(
            "unsupported_format",
            f"expected JPEG, PNG, WebP, BMP, TIFF, GIF or a video, found {describe_content(head)}",
        )
    if head and options.sampling is None:
        raise DecodeError("unsupported_format", "it is a clip, and only pictures are wanted")
    reader: _ClipReader
    if is_picture:
        reader = AnimationReader(bytes(data), max_pixels=options.max_pixels)
    else:
        # PyAV is a tenth of a second of imports, and not for those who only name what they want.
        from processors.video_reader import VideoReader  # noqa: PLC0415

        reader = VideoReader(data, max_pixels=options.max_pixels)
    return _open_clip(reader, options)


def warm_up() -> None:
    """Decodes a little of everything, so that all that decoding imports has been imported.

    After it, ``open_media`` works where opening files and sockets is denied. It takes about 20 ms
    beyond what it imports.
    """
    samples = [*_sample_pictures(), _sample_clip()]
    choices = [
        MediaOptions(),
        *(
            MediaOptions(sampling=VideoSampling(family=family), animated="video")
            for family in get_args(VideoFamily)
        ),
    ]
    for sample in (*samples, *(sample[: len(sample) * 2 // 3] for sample in samples)):
        for options in choices:
            with suppress(DecodeError):
                _exhaust(open_media(sample, options).frames)


def _is_clip(data: bytes | memoryview, options: MediaOptions) -> bool:
    """Whether a file in a format of pictures counts as a clip."""
    if options.animated == "image":
        return False
    is_format_animated = sniff_image_format(bytes(data[:SNIFFED_BYTES])) in _ANIMATED
    return is_format_animated and is_animated(bytes(data), max_pixels=options.max_pixels)


def _open_clip(reader: _ClipReader, options: MediaOptions) -> Media:
    metadata, sampling = reader.metadata, options.sampling
    assert sampling is not None
    try:
        indices = tuple(int(index) for index in sampling.indices(metadata))
        timestamps_s = tuple(reader.timestamps(indices))
    except ValueError as error:
        reader.close()
        raise DecodeError("corrupt", f"no frames can be chosen: {error}") from error
    duration_s = metadata.duration
    if not _can_be((0.0, *timestamps_s)) or not _can_be((0.0, duration_s or 0.0)):
        reader.close()
        raise DecodeError(
            "corrupt",
            f"its times cannot be: {timestamps_s[0]:g} to {timestamps_s[-1]:g} s of {duration_s} s",
        )
    lasts_s = max(duration_s or 0.0, timestamps_s[-1])
    if lasts_s > options.max_duration_s:
        reader.close()
        raise DecodeError(
            "too_large", f"it lasts {lasts_s:.1f} s, the limit is {options.max_duration_s:g} s"
        )
    assert metadata.height is not None
    assert metadata.width is not None
    info = MediaInfo(
        kind="video",
        height=metadata.height,
        width=metadata.width,
        total_num_frames=metadata.total_num_frames,
        duration_s=duration_s,
        indices=indices,
        timestamps_s=timestamps_s,
    )
    return Media(info=info, frames=_frames_then_close(reader, indices))


def _can_be(seconds: Sequence[float]) -> bool:
    """Whether times ascend within ``MAX_SECONDS``, as NaN and infinity never do."""
    return all(earlier <= later <= MAX_SECONDS for earlier, later in pairwise(seconds))


def _frames_then_close(reader: _ClipReader, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    try:
        yield from reader.frames(indices)
    finally:
        reader.close()


def _exhaust(frames: Iterator[NDArray[np.uint8]]) -> None:
    for _ in frames:
        pass


def _sample_pictures() -> Iterator[bytes]:
    first, second = Image.new("RGBA", (16, 16)), Image.new("RGBA", (16, 16), "white")
    for name in get_args(ImageFormat):
        file = io.BytesIO()
        if name in _ANIMATED:
            first.save(file, name, save_all=True, append_images=[second])
        else:
            first.convert("RGB").save(file, name)
        yield file.getvalue()


def _sample_clip() -> bytes:
    import av  # noqa: PLC0415 (as above)

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        container.mux(stream.encode())
    return file.getvalue()
