"""Every frame that a clip shows, and the packets to decode for it, by reading all packets once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import av
import numpy as np

from processors.errors import DecodeError
from processors.timeline import Timeline, timeline_at_rate, timeline_of

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

MAX_PACKETS: Final = 2**21
"""Most packets of a clip, empty ones among them: four hours at 120 frames a second."""

# Codecs reorder within 16 frames or 32 fields. What is further from its place by its timestamp is
# there because the timestamps wrap, or start again where recordings were joined.
_MAX_REORDER: Final = 64


@dataclass(kw_only=True, eq=False)
class PacketList:
    """What is known of a stream's packets, in the order in which they are decoded.

    Attributes:
        ticks: When each one's frame is shown, in the stream's ticks.
        is_key: Whether decoding may begin with it.
        is_shown: Whether it gives a frame to be seen.
        last: Ticks that the frame shown last lasts; 0 where unknown.
        num_whole: How many there are, up to the last one that is whole.
        is_short: Whether the demuxer met an error, or the last packet is not whole.
    """

    ticks: list[int | None] = field(default_factory=list)
    is_key: list[bool] = field(default_factory=list)
    is_shown: list[bool] = field(default_factory=list)
    last: int = 0
    num_whole: int = 0
    is_short: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameIndex:
    """The frames of a clip in the order of display, counted from 0.

    Attributes:
        timeline: When they are shown.
        ticks: int64 ``[num_frames]``, the timestamps by which decoded frames are told apart; None
            where there are none to rely on, and then frames are counted as they come.
        packets: int64 ``[num_frames]``, the packet that each frame is decoded from.
        first_packet: The first packet that can be decoded.
        entries: Packets where decoding may begin, ascending.
        entry_ticks: Their timestamps.
    """

    timeline: Timeline
    ticks: NDArray[np.int64] | None
    packets: NDArray[np.int64]
    first_packet: int
    entries: NDArray[np.int64]
    entry_ticks: NDArray[np.int64]

    def entry_for(self, position: int) -> tuple[int, int] | None:
        """The packet to decode a frame from, and its timestamp; None for the start.

        It is the last entry before the frame both in the file and on display. A frame behind it in
        the file but before it on display may need frames from before it (an open group).
        """
        if self.ticks is None:
            return None
        before = np.searchsorted(self.entries, self.packets[position], side="right")
        usable = np.flatnonzero(self.entry_ticks[:before] <= self.ticks[position])
        if not len(usable):
            return None
        return int(self.entries[usable[-1]]), int(self.entry_ticks[usable[-1]])


def packets_with_data(
    container: InputContainer, stream: VideoStream
) -> Iterator[Packet[VideoStream]]:
    """A stream's packets, less the empty ones: PyAV's last, and what AVI puts for no change.

    Raises:
        DecodeError: With code ``too_large`` for more than ``MAX_PACKETS`` packets, empty ones too:
            a few bytes can stand for any number of those.
    """
    for number, packet in enumerate(container.demux(stream)):
        if number > MAX_PACKETS:  # PyAV's last is one more.
            raise DecodeError("too_large", f"more than {MAX_PACKETS} packets of video")
        if packet.size:
            yield packet


def read_packets(container: InputContainer, stream: VideoStream) -> PacketList:
    """Reads a stream to its end, decoding nothing.

    Raises:
        DecodeError: As ``packets_with_data`` does.
    """
    found = PacketList()
    is_vp8 = stream.codec_context.name == "vp8"
    latest = None
    try:
        for packet in packets_with_data(container, stream):
            # VP8's references for others alone are packets of their own, and say so in a bit.
            is_hidden = is_vp8 and not bytes(packet)[0] & 0x10
            found.ticks.append(packet.pts)
            found.is_key.append(packet.is_keyframe)
            found.is_shown.append(not packet.is_discard and not is_hidden)
            found.is_short = packet.is_corrupt
            if not packet.is_corrupt:
                found.num_whole = len(found.ticks)
            if packet.pts is not None and (latest is None or packet.pts > latest):
                latest, found.last = packet.pts, packet.duration or 0
    except av.FFmpegError:
        found.is_short = True
    return found


def index_frames(
    found: PacketList, stream: VideoStream, *, has_display_times: bool
) -> FrameIndex | None:
    """Puts a stream's frames into the order of display.

    What lies before the first packet that can be decoded, in the file or on display, is not shown.
    Where timestamps are missing, repeated or jump back, or the container has none for display,
    frames count as they are decoded, at the rate that the file states.

    Returns:
        The index, or None where no frame is shown.
    """
    first = found.is_key.index(True) if True in found.is_key else 0
    shown = np.array(found.is_shown, bool)
    shown[:first] = False
    if not shown.any():
        return None
    stated_fps = stream.average_rate or stream.guessed_rate
    if not has_display_times or None in found.ticks:
        return _counted(shown, first, timeline_at_rate(int(shown.sum()), stated_fps))
    ticks = np.array(found.ticks, np.int64)
    # Those that belong before it come right after it; others are of a time that jumped back.
    followers = first + 1 + np.flatnonzero(ticks[first + 1 :] >= ticks[first])
    if len(followers) and followers[0] - first <= _MAX_REORDER and shown[followers].any():
        shown[first + 1 : followers[0]] = False
    packets = np.flatnonzero(shown)
    order = np.argsort(ticks[packets], kind="stable")
    ordered = ticks[packets][order]
    moved = np.abs(order - np.arange(len(order))).max()
    if (np.diff(ordered) == 0).any() or moved > _MAX_REORDER or not stream.time_base:
        return _counted(shown, first, timeline_at_rate(len(packets), stated_fps))
    timeline = timeline_of(
        ordered, tick_s=stream.time_base, last=found.last, stated_fps=stream.average_rate
    )
    if timeline.fps is None:
        timeline = timeline_at_rate(len(packets), stated_fps)
    entries = np.flatnonzero(shown & np.array(found.is_key, bool))
    return FrameIndex(
        timeline=timeline,
        ticks=ordered,
        packets=packets[order],
        first_packet=first,
        entries=entries,
        entry_ticks=ticks[entries],
    )


def _counted(shown: NDArray[np.bool_], first: int, timeline: Timeline) -> FrameIndex:
    none = np.zeros(0, np.int64)
    return FrameIndex(
        timeline=timeline,
        ticks=None,
        packets=np.flatnonzero(shown),
        first_packet=first,
        entries=none,
        entry_ticks=none,
    )
