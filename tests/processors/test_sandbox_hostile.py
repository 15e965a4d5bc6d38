"""The decoder process with files that do to it whatever a file can."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from processors import DecodeError, ImageOptions, decode_image
from processors.media import MediaOptions
from processors.sampling import VideoSampling
from processors.sandbox import Decoder, DecoderLimits, SandboxError
from processors.sandbox.protocol import Reply
from tests.processors.hostile_template import clip_info
from tests.processors.test_sandbox import OPTIONS, OddDecoder, assert_decoded, encode, noise

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    limits = DecoderLimits(timeout_s=60.0, memory_bytes=100 * 2**20)
    options = replace(OPTIONS, max_pixels=10_000)
    with OddDecoder(limits=limits, options=options) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def hurried() -> Iterator[Decoder]:
    with OddDecoder(limits=DecoderLimits(timeout_s=1.0)) as decoder:
        yield decoder


def failure(decoder: Decoder, data: bytes) -> DecodeError:
    """Of a file with good ones before and after it, both of which are decoded as they should."""
    good = encode(noise(), "PNG")
    expected = decode_image(good).pixels
    before = decoder.submit(good)
    hostile = decoder.submit(data)
    np.testing.assert_array_equal(next(before.frames()), expected)
    before.close()
    after = decoder.submit(good)
    with pytest.raises(DecodeError) as caught:
        for frame in hostile.frames():
            del frame
    np.testing.assert_array_equal(next(after.frames()), expected)
    assert after.attempts == 1
    after.close()
    return caught.value


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("touch_nothing", "the decoder died of SIGSEGV"),
        ("abort", "the decoder died of SIGABRT"),
        ("raise_signal SIGBUS", "the decoder died of SIGBUS"),
        ("raise_signal SIGILL", "the decoder died of SIGILL"),
        ("raise_signal SIGFPE", "the decoder died of SIGFPE"),
        ("leave 0", "the decoder exited with status 0"),
        ("leave 3", "the decoder exited with status 3"),
        ("fail", "ZeroDivisionError: of no decoder's making"),
        ("promise 3 2", "StopIteration"),
        ("close_the_socket", "the decoder went silent"),
        ("write_nothing", "the decoder went silent"),
        ("write_much", "the decoder sent garbage: a message of over 131072 bytes"),
        ("write_garbage", "the decoder sent garbage: no JSON"),
        ("write_half", "the decoder sent garbage: no JSON"),
        ("flood", "the decoder sent garbage"),
        ("large_clip 1 101", "the decoder sent garbage: a frame of 101 x 101, over the limit"),
        ("promise 4097 1", "the decoder sent garbage: expected a list of 4096 values or fewer"),
        ("lie total_num_frames 2147483648", "the decoder sent garbage: expected an integer of 1.."),
        ("lie height 5", "the decoder sent garbage: a first frame of (4, 6), not (5, 6)"),
        ("picture 8 8 4 4", "the decoder sent garbage: a first frame of (4, 4), not (8, 8)"),
        ("lie duration_s -0.1", "the decoder sent garbage: expected seconds of 0.."),
        ("lie indices [1,2,100]", "the decoder sent garbage: expected an integer of 0..99"),
        ("lie timestamps_s [0,2,1]", "the decoder sent garbage: frames out of order"),
        ("lie timestamps_s [-1,0,1]", "the decoder sent garbage: expected seconds of 0.."),
        ("run_a_program", "PermissionError: [Errno 1] Operation not permitted"),
    ],
)
def test_a_crash_costs_its_own_file_only(decoder: Decoder, act: str, reason: str) -> None:
    error = failure(decoder, f"HOSTILE {act}".encode())
    assert (error.code, error.attempts) == ("decoder_crashed", 2)
    assert error.message.startswith(reason)


def test_a_clip_where_only_pictures_are_wanted_is_garbage() -> None:
    with OddDecoder(options=MediaOptions()) as decoder:
        error = failure(decoder, b"HOSTILE promise 2 2")
    assert (error.code, error.attempts) == ("decoder_crashed", 2)
    assert error.message == "the decoder sent garbage: a clip, and only pictures are wanted"


@pytest.mark.parametrize("side", [20, 39, 41])
def test_a_picture_reduced_by_another_factor_is_garbage(side: int) -> None:
    options = MediaOptions(reduce_for=ImageOptions(min_pixels=1, max_pixels=2 * 28 * 28))
    with OddDecoder(options=options) as decoder:
        for good in (80, 40):
            with decoder.submit(f"HOSTILE picture 80 80 {good} {good}".encode()) as decoding:
                assert [frame.shape for frame in decoding.frames()] == [(good, good, 3)]
        error = failure(decoder, f"HOSTILE picture 80 80 {side} {side}".encode())
    frame = f"({side}, {side}), not (80, 80)"
    assert error.message == f"the decoder sent garbage: a first frame of {frame}"


def test_more_frames_than_are_wanted_are_garbage() -> None:
    with OddDecoder(options=MediaOptions(sampling=VideoSampling(max_frames=4))) as decoder:
        error = failure(decoder, b"HOSTILE promise 5 5")
    assert (error.code, error.attempts) == ("decoder_crashed", 2)
    assert error.message.startswith("the decoder sent garbage: expected a list of 4 values")


def test_an_answer_about_another_file_is_garbage(decoder: Decoder) -> None:
    number = decoder._submitted + 1
    with decoder.submit(f"HOSTILE promise_and_go_on {number}".encode()) as clip:
        assert next(clip.frames()).shape == (4, 6, 3)
        with pytest.raises(DecodeError, match=f"an answer about file {number + 1}, not {number}"):
            next(clip.frames())
    assert_decoded(decoder, encode(noise(), "PNG"))


@pytest.mark.parametrize("act", ["loop", "sleep 60", "stall_midway", "trickle 50 0.1"])
def test_a_hang_costs_its_own_file_only_and_no_more_than_the_limit(
    hurried: Decoder, act: str
) -> None:
    began = time.monotonic()
    error = failure(hurried, f"HOSTILE {act}".encode())
    assert (error.code, error.attempts) == ("decode_timeout", 1)
    assert error.message == "it took longer than 1 s"
    assert 1 <= time.monotonic() - began < 3


def test_who_looks_at_pixels_slowly_causes_no_timeout(hurried: Decoder) -> None:
    first, second = hurried.submit(b"HOSTILE sleep 0.6"), hurried.submit(b"HOSTILE sleep 0.6")
    for decoding in (first, second):
        (frame,) = decoding.frames()
        assert frame.max() == 10
        time.sleep(1.1)


def test_reading_what_a_process_says_counts(
    hurried: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Reply.from_bytes

    def read_slowly(message: bytes, *, options: MediaOptions) -> Reply:
        time.sleep(0.3)
        return read(message, options=options)

    monkeypatch.setattr(Reply, "from_bytes", read_slowly)
    clip = hurried.submit(b"HOSTILE promise 20 20")
    with pytest.raises(DecodeError, match="it took longer than 1 s"):
        list(clip.frames())


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("eat_memory", "it takes more than the limit of 104857600 bytes of memory"),
        ("raise_signal SIGKILL", "the decoder was killed, by the kernel for want of memory"),
    ],
)
def test_a_hog_costs_its_own_file_only(decoder: Decoder, act: str, reason: str) -> None:
    error = failure(decoder, f"HOSTILE {act}".encode())
    assert (error.code, error.attempts) == ("decoder_out_of_memory", 2)
    assert error.message.startswith(reason)


def test_memory_that_is_mapped_as_shared_counts_too(decoder: Decoder) -> None:
    error = failure(decoder, b"HOSTILE map_memory")
    assert (error.code, error.attempts) == ("decoder_crashed", 2)
    assert "Cannot allocate memory" in error.message


@pytest.mark.parametrize("at", range(6))
def test_a_clip_that_died_midway_goes_on_where_it_was(decoder: Decoder, at: int) -> None:
    assert_decoded(decoder, encode(noise(), "PNG"))  # The process is no fresh one.
    clip = decoder.submit(f"HOSTILE die_midway {at}".encode())
    after = decoder.submit(encode(noise(), "PNG"))
    assert [frame.max() for frame in clip.frames()] == [0, 10, 20, 30, 40, 50]
    assert clip.attempts == 2
    np.testing.assert_array_equal(next(after.frames()), np.asarray(noise()))
    after.close()


def test_a_clip_that_is_another_one_when_decoded_again_is_given_up(decoder: Decoder) -> None:
    assert_decoded(decoder, encode(noise(), "PNG"))
    with decoder.submit(b"HOSTILE change_story") as clip:
        assert clip.info() == clip_info(3)
        with pytest.raises(DecodeError, match="another description than before"):
            list(clip.frames())


def test_nothing_that_is_denied_succeeds(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(decoder.enforced.values()) == {True}
    for name in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "HF_TOKEN", "LC_TEST", "MINE"):
        monkeypatch.setenv(name, "secret")
    with OddDecoder() as fresh:
        error = failure(fresh, f"HOSTILE break_out {os.getpid()}".encode())
    done, _, environment = error.message.partition("; environment: ")
    assert done == "done: nothing"
    allowed = "LANG LC_CTYPE LC_TEST LD_LIBRARY_PATH OMP_NUM_THREADS OPENBLAS_NUM_THREADS PATH "
    allowed += "PYTHONPATH PYTHONSAFEPATH GLIBC_TUNABLES"
    assert set(environment.split()) <= set(allowed.split())
    assert "LC_TEST" in environment


def test_without_the_filter_files_and_memory_of_others_are_closed_all_the_same() -> None:
    script = """
import ctypes, os
from processors import DecodeError
from processors.sandbox import Decoder
from processors.sandbox.lockdown import CALL_FILTER

class UnfilteredDecoder(Decoder):
    _template_module = "tests.processors.unfiltered_template"

with UnfilteredDecoder() as decoder:
    assert [name for name, done in decoder.enforced.items() if not done] == [CALL_FILTER]
    try:
        decoder.submit(f"HOSTILE break_out {os.getpid()}".encode()).info()
    except DecodeError as error:
        print(error.message.partition(";")[0])
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    tried, dumpable = done.stdout.splitlines()
    assert tried.startswith("done: ")
    # What is left, to root at least, are the calls that need no descriptor and no capability.
    assert set(tried.split()[1:]) <= {"unlink", "fork", "kill", "code", "chdir"}
    assert dumpable == "0"


def test_a_process_that_is_killed_idle_is_replaced(decoder: Decoder) -> None:
    assert_decoded(decoder, encode(noise(), "PNG"))
    child = decoder._supervisor.child
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)
    began = time.monotonic()
    assert_decoded(decoder, encode(noise(), "PNG"))
    assert time.monotonic() - began < 1


def test_a_template_that_is_killed_is_replaced_and_no_file_blamed(decoder: Decoder) -> None:
    assert_decoded(decoder, encode(noise(), "PNG"))
    child = decoder._supervisor.child
    assert child is not None
    process = psutil.Process(child.pid)
    template = process.parent()
    assert template is not None
    clip = decoder.submit(b"HOSTILE sleep 0.3")
    template.kill()
    assert next(clip.frames()).max() == 10
    assert clip.attempts == 1
    clip.close()
    process.wait(timeout=5)


def test_a_template_that_is_killed_again_and_again_is_no_endless_loop() -> None:
    with OddDecoder() as decoder:
        clip = decoder.submit(b"HOSTILE sleep 60")
        killer = subprocess.Popen([sys.executable, "-c", KILLER, str(os.getpid())])
        with pytest.raises(SandboxError, match="decoder processes cannot be started: "):
            clip.info()
        killer.kill()
        killer.wait()


KILLER = """
import contextlib, sys, time, psutil
parent = psutil.Process(int(sys.argv[1]))
while True:
    for template in parent.children():
        with contextlib.suppress(psutil.Error):
            if "hostile_template" in " ".join(template.cmdline()) and template.children():
                template.kill()
    time.sleep(0.01)
"""


class DyingDecoder(OddDecoder):
    _template_module = "tests.processors.dying_template"


def test_a_template_that_dies_after_every_start_is_given_up_and_no_file_blamed() -> None:
    with DyingDecoder(limits=DecoderLimits(timeout_s=3.0)) as decoder:
        clip = decoder.submit(b"HOSTILE sleep 60")
        with pytest.raises(SandboxError, match="decoder processes cannot be started: it ended"):
            clip.info()
        assert clip.attempts == 1


def test_a_template_that_dies_after_every_file_is_replaced_without_end() -> None:
    good = encode(noise(), "PNG")
    with DyingDecoder() as decoder:
        for _ in range(5):
            assert_decoded(decoder, good)
            supervisor = decoder._supervisor
            assert supervisor._template is not None
            supervisor._template._process.wait(10)


@pytest.mark.parametrize("act", ["sleep 0", "loop"])
def test_a_parent_that_is_killed_leaves_no_process_behind(act: str) -> None:
    script = f"""
import signal, time
from tests.processors.test_sandbox import OddDecoder
signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
decoder = OddDecoder()
decoder.submit(b"HOSTILE {act}")
print("ready", flush=True)
time.sleep(100)
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        processes = psutil.Process(parent.pid).children(recursive=True)
        assert len(processes) == 2
        parent.kill()
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert alive == []


def test_signals_that_the_parent_blocks_or_ignores_make_no_difference() -> None:
    script = """
import signal
from processors import DecodeError
from tests.processors.test_sandbox import OddDecoder, assert_decoded, encode, noise
signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
with OddDecoder() as decoder:
    try:
        decoder.submit(b"HOSTILE touch_nothing").info()
    except DecodeError as error:
        print(error)
    assert_decoded(decoder, encode(noise(), "PNG"))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "decoder_crashed: the decoder died of SIGSEGV\n"
    assert done.stderr == ""
