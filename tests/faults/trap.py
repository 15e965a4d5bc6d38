"""A trap in the kernel: whoever so much as tries to open a file or a socket is killed.

python -m tests.faults.trap CASES [PATH]

CASES is a pickle of files by name. They are decoded in this very process, with nothing to guard it
but the trap: the white lists alone. It prints a line of JSON for each: its name, and its error's
code. With PATH, it opens that at the end.
"""

from __future__ import annotations

import json
import pickle
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from processors.errors import DecodeError
from processors.formats import VideoFormat
from processors.media import MediaOptions, open_media, warm_up
from processors.sampling import VideoSampling
from processors.sandbox.lockdown import load_filter
from processors.video_file import VideoFile

TRAPPED = (
    *("open", "openat", "openat2", "creat", "open_by_handle_at", "access", "readlink", "execve"),
    *("socket", "socketpair", "connect", "bind", "listen", "sendmsg", "sendmmsg", "memfd_create"),
)


def set_trap() -> None:
    import pyseccomp

    trap = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for call in TRAPPED:
        trap.add_rule(pyseccomp.KILL_PROCESS, call)
    trap.load()


def outcomes(data: bytes) -> Iterator[str | None]:
    """The file as what it is, and as each container whose demuxer it might get to."""
    for animated in ("image", "video"):
        options = MediaOptions(sampling=VideoSampling(), animated=animated)
        yield _code(lambda options=options: list(open_media(data, options).frames))
    for kind in get_args(VideoFormat):
        file = VideoFile(data=data, video_format=kind, max_pixels=10**7)
        yield _code(lambda file=file: list(file.open()[0].demux()))


def _code(decode: Any) -> str | None:
    try:
        decode()
    except DecodeError as error:
        return error.code
    except OSError:  # of PyAV's: packets outside of `errors`
        return "corrupt"
    return None


def main() -> None:
    files = pickle.loads(Path(sys.argv[1]).read_bytes())
    load_filter()
    warnings.simplefilter("ignore")  # Showing one would read the source of the library that warns.
    warm_up()
    if sys.argv[2:]:
        Path(sys.argv[2]).open().close()  # It opens, and a witness sees it.
    set_trap()
    for name, data in files.items():
        print(json.dumps([name, *outcomes(data)]), flush=True)
    if sys.argv[2:]:
        Path(sys.argv[2]).open().close()
        print("opened", flush=True)


if __name__ == "__main__":
    main()
