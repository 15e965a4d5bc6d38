from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors import DecodeError
from processors.media import MediaInfo, MediaOptions
from processors.sampling import VideoSampling
from processors.sandbox.protocol import MAX_FRAMES, MAX_MESSAGE_BYTES, GarbageError, Reply, Work

OPTIONS = MediaOptions(max_pixels=24, sampling=VideoSampling(max_frames=3))
CLIP = {
    "kind": "video",
    "height": 4,
    "width": 6,
    "total_num_frames": 10,
    "duration_s": 0.4,
    "indices": [0, 9, 9],
    "timestamps_s": [0.0, 0.36, 0.36],
}
PICTURE = dict.fromkeys(CLIP) | {"kind": "image", "height": 4, "width": 6}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=5,
)


def read(fields: object) -> Reply:
    return Reply.from_bytes(json.dumps(fields).encode(), options=OPTIONS)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(item=1, info=MediaInfo(kind="image", height=4, width=6), frame=(4, 6)),
        Reply(item=2, frame=(1, 24)),
        Reply(
            item=3,
            info=MediaInfo(
                kind="video",
                height=4,
                width=6,
                total_num_frames=10,
                duration_s=None,
                indices=(0, 9, 9),
                timestamps_s=(0.0, 0.36, 0.36),
            ),
        ),
    ],
)
def test_a_reply_is_read_as_it_was_meant(reply: Reply) -> None:
    assert Reply.from_bytes(reply.to_bytes(), options=OPTIONS) == reply


def test_an_error_is_read_as_it_was_meant() -> None:
    error = DecodeError("corrupt", "größer, and\nmore")
    reply = Reply.from_bytes(Reply(item=1, error=error).to_bytes(), options=OPTIONS)
    assert reply.error is not None
    assert (reply.error.code, reply.error.message) == ("corrupt", "größer, and more")


@given(st.integers(0, 2**64 - 1), st.integers(0, 1), st.integers(0, 2**64 - 1))
def test_work_is_read_as_it_was_meant(item: int, buffer: int, size: int) -> None:
    work = Work(item=item, buffer=buffer, size=size)
    assert Work.from_bytes(work.to_bytes()) == work


def test_the_longest_description_fits_into_a_message() -> None:
    info = MediaInfo(
        kind="video",
        height=10_000,
        width=10_000,
        total_num_frames=10**6,
        duration_s=1e5 / 3,
        indices=tuple(range(10**6 - MAX_FRAMES, 10**6)),
        timestamps_s=tuple(3600 + number / 3 for number in range(MAX_FRAMES)),
    )
    assert len(Reply(item=2**63, info=info, frame=(10_000, 10_000)).to_bytes()) < MAX_MESSAGE_BYTES


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff\xfe",
        b'{"item": 1, "info": {"kind": "ima',
        b"[" * 100_000,
        b"9" * 10_000,
        b" " * (MAX_MESSAGE_BYTES + 1),
        b'{"item": 1, "frame": [4, 6]} {"item": 1, "frame": [4, 6]}',
    ],
)
def test_what_is_no_json_is_garbage(message: bytes) -> None:
    with pytest.raises(GarbageError):
        Reply.from_bytes(message, options=OPTIONS)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        {},
        {"item": 1},
        {"item": -1, "frame": [4, 6]},
        {"item": True, "frame": [4, 6]},
        {"item": 1.0, "frame": [4, 6]},
        {"item": 1, "frame": [4, 6], "more": 1},
        {"item": 1, "frame": [4, 6], "error": ["corrupt", "so"]},
        {"item": 1, "frame": [5, 5]},
        {"item": 1, "frame": [0, 6]},
        {"item": 1, "frame": [-4, -6]},
        {"item": 1, "frame": [2**40, 2**40]},
        {"item": 1, "frame": [4]},
        {"item": 1, "frame": [4, 6, 3]},
        {"item": 1, "frame": "46"},
        {"item": 1, "frame": None},
        {"item": 1, "error": ["not_found", "not its to say"]},
        {"item": 1, "error": ["decoder_out_of_memory", "said by a status"]},
        {"item": 1, "error": ["corrupt"]},
        {"item": 1, "error": ["corrupt", 1]},
        {"item": 1, "error": [["corrupt"], "so"]},
        {"item": 1, "info": None},
        {"item": 1, "info": {"kind": "image", "height": 4, "width": 6}},
    ],
)
def test_a_message_of_another_shape_is_garbage(fields: object) -> None:
    with pytest.raises(GarbageError):
        read(fields)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "sound"},
        {"kind": []},
        {"height": 5, "width": 5},
        {"height": None},
        {"total_num_frames": 9},
        {"total_num_frames": None},
        {"total_num_frames": 0, "indices": [], "timestamps_s": []},
        {"total_num_frames": 2**31},
        {"duration_s": -0.1},
        {"duration_s": "0.4"},
        {"duration_s": float("nan")},
        {"indices": [9, 0, 9]},
        {"indices": [-1, 0, 9]},
        {"indices": [0, 9]},
        {"indices": None},
        {"indices": [True, 9, 9]},
        {"indices": [0, 9, 10]},
        {"indices": [], "timestamps_s": []},
        {"indices": [0] * 5, "timestamps_s": [0.0] * 5},
        {"timestamps_s": [0.0, float("inf"), 1.0]},
        {"timestamps_s": [0.0, None, 1.0]},
        {"timestamps_s": [0.0] * 5},
        {"timestamps_s": [0.0, 0.36, 0.35]},
        {"timestamps_s": [-0.01, 0.36, 0.36]},
        {"timestamps_s": [0.0, 0.36, 1.1e9]},
        {"duration_s": 10**400},
    ],
)
def test_a_clip_that_cannot_be_is_garbage(changes: dict[str, Any]) -> None:
    read({"item": 1, "info": CLIP})
    with pytest.raises(GarbageError):
        read({"item": 1, "info": CLIP | changes})


def test_a_clip_where_only_pictures_are_wanted_is_garbage() -> None:
    message = json.dumps({"item": 1, "info": CLIP}).encode()
    with pytest.raises(GarbageError, match="only pictures are wanted"):
        Reply.from_bytes(message, options=MediaOptions(max_pixels=24))


def test_sides_fit_into_32_bits_whatever_the_limit() -> None:
    options = MediaOptions(max_pixels=2**40)
    for side in (2**31 - 1, 2**31):
        message = json.dumps({"item": 1, "frame": [1, side]}).encode()
        if side < 2**31:
            assert Reply.from_bytes(message, options=options).frame == (1, side)
        else:
            with pytest.raises(GarbageError):
                Reply.from_bytes(message, options=options)


def test_a_picture_with_frames_is_garbage() -> None:
    read({"item": 1, "info": PICTURE, "frame": [4, 6]})
    with pytest.raises(GarbageError):
        read({"item": 1, "info": PICTURE | {"indices": [0] * 3}, "frame": [4, 6]})


@given(
    st.dictionaries(st.sampled_from(["item", "info", "frame", "error"]), json_values)
    | st.fixed_dictionaries(
        {"item": st.just(1), "info": st.fixed_dictionaries(dict.fromkeys(CLIP, json_values))}
    )
)
def test_nothing_but_garbage_is_raised_for_any_json(fields: dict[str, Any]) -> None:
    try:
        reply = read(fields)
    except GarbageError:
        return
    assert (reply.error is None) == (reply.info is not None or reply.frame is not None)
