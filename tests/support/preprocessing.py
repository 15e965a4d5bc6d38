"""The preprocessing stage's configuration, as tests want it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa

from pipeline.limits import Limits
from pipeline.options import ProcessorOptions
from pipeline.preprocess import PreprocessConfig
from pipeline.reach import Reach
from processors import ImageOptions, VideoOptions


def preprocess_config(
    images: ImageOptions | None = None,
    videos: VideoOptions | None = None,
    *,
    family: Any = "glmga",
    animated: Any = "image",
    decode: Any = "exact",
    **limits: Any,
) -> PreprocessConfig:
    """One with limits that only hostile files reach, but for those given."""
    ample = Limits(
        max_file_bytes=10**7,
        max_source_pixels=10**7,
        decode_timeout_s=60.0,
        decoder_memory_bytes=2**29,
    )
    options = ProcessorOptions(
        images=images or ImageOptions(),
        family=family,
        videos=videos or VideoOptions(),
        animated=animated,
        decode=decode,
    )
    anywhere = Reach(roots=("/",))
    return PreprocessConfig(limits=replace(ample, **limits), options=options, reach=anywhere)


def whole(parts: Iterator[pa.Table]) -> pa.Table:
    """All rows of a call, in order."""
    return pa.concat_tables(parts)
