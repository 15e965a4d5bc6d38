"""The frames of a clip by their place in it, decoding no more than they need."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

from processors.errors import DecodeError
from processors.packet_decoder import PacketDecoder
from processors.video_file import VideoFile
from processors.video_index import FrameIndex

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# How frames are found; each way is left for the next when it meets what should not be.
# skip: what no wanted frame needs is not decoded, and frames are told apart by their timestamps.
# time: everything is decoded, from the start.
# count: timestamps are not believed either, and frames count as they come.
_Plan: TypeAlias = Literal["skip", "time", "count"]
_NEXT_PLAN: Final[dict[_Plan, _Plan]] = {"skip": "time", "time": "count"}

# A frame's second field, and the placeholder that ends some AVI files, are packets without a frame.
_MAX_MISSING_AT_END: Final = 1


class _PlanFailedError(Exception):
    """What the decoder gives is not what the plan relies on."""


class FrameDecoder:
    """Decodes single frames, fast where their positions ascend.

    Groups of pictures without a wanted frame are passed over, not sought across: the file is in
    memory, where a packet is passed over in microseconds, and a packet that was counted is never
    mistaken for another.
    """

    def __init__(self, file: VideoFile, index: FrameIndex) -> None:
        self._file = file
        self._index = index
        self._plan: _Plan = "count" if index.ticks is None else "skip"
        self._position = 0
        self._wanted: Container[int] | None = None
        self._decoder: PacketDecoder | None = None
        self._current: VideoFrame | None = None
        self._num_taken = 0
        self._entry: int | None = None

    def frames_at(self, positions: Sequence[int]) -> Iterator[VideoFrame]:
        """Decodes frames, one after the other; nothing else may be decoded in between.

        Args:
            positions: Which ones, counted from 0 in the order of display, ascending.

        Raises:
            DecodeError: With code ``truncated`` where a frame is missing or comes after one that
                is damaged, ``corrupt`` where no frame comes before that, or as ``VideoFile.open``
                does.
        """
        ticks = self._index.ticks
        wanted = None if ticks is None else {int(tick) for tick in ticks[list(positions)]}
        if self._wanted is not None or (positions and positions[0] < self._position):
            self.close()  # what is wanted now may have been left out, or passed
        self._wanted = wanted
        return map(self.frame_at, positions)

    def frame_at(self, position: int) -> VideoFrame:
        """Decodes one frame, not before the last one in the order of display.

        Raises:
            DecodeError: As ``frames_at``.
        """
        self._position = position
        while True:
            try:
                return self._find(position)
            except _PlanFailedError:
                self.close()
                self._plan = _NEXT_PLAN[self._plan]

    def close(self) -> None:
        """Lets go of the decoder, which begins anew when it is needed."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    def _find(self, position: int) -> VideoFrame:
        decoder = self._decoder or self._begin()
        if self._plan == "skip":
            decoder.wanted = self._wanted
            self._skip_to(position, decoder)
        while self._current is None or not self._is_at(position, self._current):
            upcoming = decoder.peek()
            if upcoming is None:
                return self._frame_at_end(decoder.damage)
            if self._plan != "count" and self._is_past(position, upcoming):
                if self._plan == "skip":
                    raise _PlanFailedError
                # The packet holds no frame of its own: what was on display still is.
                return self._current or upcoming
            self._current = decoder.pop()
            self._num_taken += 1
        return self._current

    def _begin(self) -> PacketDecoder:
        ticks = self._index.ticks
        floor = None if ticks is None or self._plan == "count" else int(ticks[0])
        self._current = None
        self._num_taken = 0
        self._entry = None
        self._decoder = PacketDecoder(
            self._file, first_packet=self._index.first_packet, floor=floor
        )
        return self._decoder

    def _skip_to(self, position: int, decoder: PacketDecoder) -> None:
        entry = self._index.entry_for(position)
        if entry is None or entry[0] <= decoder.next_packet:
            return
        decoder.skip_to(entry[0], floor=entry[1])
        self._current = None
        self._entry = entry[1]

    def _is_at(self, position: int, frame: VideoFrame) -> bool:
        if self._plan == "count" or self._index.ticks is None:
            return self._num_taken == position + 1
        return frame.pts == int(self._index.ticks[position])

    def _is_past(self, position: int, upcoming: VideoFrame) -> bool:
        """Whether a frame comes after a position, once its timestamp is plausible."""
        assert self._index.ticks is not None
        if upcoming.pts is None:
            raise _PlanFailedError
        if self._current is not None and self._current.pts is not None:
            is_plausible = upcoming.pts > self._current.pts
        else:
            # The decoder must agree that it was a place to begin.
            is_plausible = self._entry is None or (
                upcoming.pts == self._entry and upcoming.key_frame
            )
        if not is_plausible:
            raise _PlanFailedError
        return upcoming.pts > int(self._index.ticks[position])

    def _frame_at_end(self, damage: DecodeError | None) -> VideoFrame:
        """What stands in for a frame that the decoder did not get to."""
        if self._plan == "skip":
            raise _PlanFailedError
        ticks, timeline = self._index.ticks, self._index.timeline
        num_found = self._num_taken
        if self._plan == "time" and ticks is not None and self._current is not None:
            num_found = int(np.searchsorted(ticks, self._current.pts or 0, side="right"))
        missing = timeline.num_frames - num_found
        if self._current is not None and damage is None and missing <= _MAX_MISSING_AT_END:
            return self._current
        reason = damage.message if damage else f"{self._file.video_format}: it ends early"
        found = f"decoded {num_found} of {timeline.num_frames} frames"
        if timeline.duration_s is not None and num_found < timeline.num_frames:
            found += f", {timeline.seconds[num_found]:.1f} s of {timeline.duration_s:.1f} s"
        raise DecodeError("truncated" if num_found else "corrupt", f"{reason}; {found}")
