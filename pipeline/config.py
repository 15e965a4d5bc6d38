"""What a run is asked to do: the options of the command line, validated, and their groups.

`EmbedConfig` is the command line of `jobs.embed`. Its fields are of three kinds (see
`pipeline.identity`): *semantic* ones make the results what they are, *frozen* ones lay out
the output, *free* ones may change from run to run. The stages take configs of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal, get_args

from tyro.conf import Positional, UseAppendAction, arg

from pipeline.errors import UsageError
from pipeline.flags import check_positive, check_text
from pipeline.limits import Limits
from processors import ErrorCode

Level = Literal["item", "frame", "token"]
Pool = Literal["mean", "max"]
Features = Literal["merged", "last_hidden_state"]
OutputDtype = Literal["float32", "float16"]
Animated = Literal["image", "video"]
Decode = Literal["exact", "fast"]
Device = Literal["auto", "cpu", "cuda"]
ComputeDevice = Literal["cpu", "cuda"]
ComputeDtype = Literal["float32", "bfloat16", "float16"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

# Without these, help and error messages would spell out the None that stands for "not given".
Count = Annotated[int | None, arg(metavar="INT")]
Number = Annotated[float | None, arg(metavar="FLOAT")]
Text = Annotated[str | None, arg(metavar="STR")]

DEFAULT_SHARD_ROWS = 4096
# A shard is one block of the engine, in the memory of one task.
MOST_SHARD_ROWS = 2**20
_LEAST_GPU_SHARE = 0.0001  # Ray schedules by multiples of it.


def slice_of(shards: str | None) -> tuple[int, int | None]:
    """`--shards FROM:TO` as numbers; either side may be empty.

    Raises:
        UsageError: It is not of that form, or empty.
    """
    if shards is None:
        return 0, None
    match = re.fullmatch(r"(\d*):(\d*)", shards)
    if match is None:
        raise UsageError(f"--shards must be FROM:TO, such as 0:500, got {shards!r}")
    start, stop = int(match[1] or 0), int(match[2]) if match[2] else None
    if stop is not None and stop <= start:
        raise UsageError(f"--shards {shards} is empty: TO must be larger than FROM")
    return start, stop


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """What to embed, and how it is cut into shards."""

    inputs: Positional[tuple[str, ...]] = ()
    """Folders, globs, s3:// prefixes, or Parquet manifests with a `uri` column."""
    root: UseAppendAction[tuple[str, ...]] = ()
    """Where a manifest's items may lie, beside its own folder: a folder, s3:// prefix or file; may
    be given several times."""
    follow_links: bool = False
    """Follow symbolic links out of the inputs' folders; once items are planned so, in all runs on
    the output."""
    shard_rows: Count = None
    """Items a shard, the unit of writing and of resuming; where nothing is planned yet, 4096, or
    as many as fit into 2 GiB at --level frame or token."""
    partition_by: UseAppendAction[tuple[str, ...]] = ()
    """Column of the manifest that becomes folders of the output; may be given several times."""
    limit: Count = None
    """Look at the first so many items of the inputs only."""

    def __post_init__(self) -> None:
        check_positive(self, "shard_rows", "limit")
        if self.shard_rows is not None and self.shard_rows > MOST_SHARD_ROWS:
            raise UsageError(
                f"--shard-rows must be at most {MOST_SHARD_ROWS}, got {self.shard_rows}"
            )
        check_text("an INPUT", *self.inputs)
        check_text("--root", *self.root)
        check_text("--partition-by", *self.partition_by)
        if len(set(self.partition_by)) < len(self.partition_by):
            raise UsageError(f"--partition-by names a column twice: {' '.join(self.partition_by)}")


@dataclass(frozen=True, kw_only=True)
class PlanConfig(InputConfig):
    """What to plan, and where to freeze the plan."""

    output: Text = None
    """Folder or s3:// prefix of an output; the plan is frozen there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is not None:
            check_text("--output", self.output)


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Which output to look at."""

    output: str
    """Folder or s3:// prefix of the output."""

    def __post_init__(self) -> None:
        check_text("--output", self.output)


@dataclass(frozen=True, kw_only=True)
class RunConfig(OutputConfig):
    """What may change from run to run: no result depends on it."""

    max_error_rate: float = 1.0
    """Stop with exit code 3 when a larger share of this run's items fails."""
    device: Device = "auto"
    """Where the encoder runs; auto takes CUDA where there is one."""
    encoder_actors: Count = None
    """Encoder processes; as many as the GPUs have room for, or one for every two CPUs, where not
    given. More than the GPUs have room for wait until there are more GPUs."""
    gpus_per_encoder: float = 1.0
    """GPUs that each encoder process claims; with a fraction, such as 0.5, several share a GPU and
    each may use that fraction of its memory."""
    preprocess_actors: Count = None
    """Preprocessing processes; one for every CPU where not given, and in a cluster without GPUs one
    for every CPU that encoders leave; fewer where memory is short."""
    token_budget: Count = None
    """Merged patches a forward pass; 16384 on CUDA, 1024 on a CPU where not given."""
    max_file_bytes: Count = None
    """Larger files become `too_large` without being read. Given, it holds for this run; where not,
    it is as the output was begun with, and 1 GiB at first."""
    max_source_pixels: Count = None
    """Images, and clips with frames, of more pixels become `too_large` without being decoded;
    likewise, 200,000,000 at first."""
    max_duration_s: Number = None
    """Clips of more seconds become `too_large` without being decoded; likewise, 14,400 at first."""
    decode_timeout_s: Number = None
    """Seconds to wait for the pixels of one file; then it becomes `decode_timeout`; likewise, 300
    at first."""
    decoder_memory_bytes: Count = None
    """Memory that decoding one file may take; beyond, it becomes `decoder_out_of_memory`; likewise,
    1.5 GiB at first."""
    insecure_ray: bool = False
    """Join a Ray cluster even if it asks for no token, so that whoever reaches it may run code."""
    verbose: bool = False
    """Show what Ray and other libraries log."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "encoder_actors", "preprocess_actors", "token_budget")
        self.limits()
        if not 0.0 <= self.max_error_rate <= 1.0:
            raise UsageError(f"--max-error-rate must be within 0 and 1, got {self.max_error_rate}")
        share = self.gpus_per_encoder
        if not (_LEAST_GPU_SHARE <= share <= 1 or (share > 1 and share % 1 == 0)):
            raise UsageError(
                "--gpus-per-encoder must be a whole number, or a fraction of at least "
                f"{_LEAST_GPU_SHARE}, got {share}"
            )

    def limits(self, begun: Limits | None = None) -> Limits:
        """What one file may cost.

        Args:
            begun: Those of the output, which go for what is not given; None takes the defaults.

        Raises:
            UsageError: One is not positive, or too large to be kept.
        """
        names = (field.name for field in fields(Limits))
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(begun or Limits(), **given)


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(RunConfig, InputConfig):
    """Embed every item of the inputs that is not embedded yet."""

    output: str
    """Folder or s3:// prefix of the output. Run again with the same one to resume."""
    encoder: str = "tiny"
    """A preset with random weights (tiny, small, medium, large), or a checkpoint's folder,
    s3:// or hf:// location."""
    seed: int = 0
    """Seed of a preset's random weights."""
    min_pixels: Count = None
    """Scale smaller images up to this many pixels; the family's own where not given."""
    max_pixels: Count = None
    """Scale larger images down to this many pixels; the family's own where not given."""
    video_max_pixels: Count = None
    """Scale clips down until all their frames together have this many pixels; the family's own
    where not given."""
    fps: Number = None
    """Frames a second to look at in a clip; the family's own where not given."""
    max_frames: Count = None
    """Most frames to look at in a clip; the family's own where not given."""
    animated: Animated = "image"
    """What animated GIF, WebP and PNG files count as: their first frame, or a clip."""
    decode: Decode = "exact"
    """fast decodes JPEGs at a half, a quarter or an eighth of their sides, where they are scaled
    down to that or less: large photos at small budgets take a fraction of the time, and their
    vectors are not quite those of exact."""
    level: Level = "item"
    """One vector an item; frame adds one a segment, which is a clip's pair of frames or a whole
    image, in frames/; token adds those and all of their tokens, in tokens/."""
    pool: Pool = "mean"
    """How an item's tokens become its vector."""
    features: Features = "merged"
    """Tokens after the merger, or the last hidden state before it."""
    normalize: bool = False
    """Scale vectors to length 1."""
    dtype: Dtype = "auto"
    """Type of the encoder's matrix products. auto is the one that the output was begun with; for a
    new one bfloat16 on CUDA, float16 on GPUs of compute capability below 8.0, float32 on a CPU."""
    output_dtype: OutputDtype = "float32"
    """Type of the stored vectors."""
    shards: Text = None
    """FROM:TO, only these shards of what is planned: for several drivers on one output."""

    def __post_init__(self) -> None:
        InputConfig.__post_init__(self)
        RunConfig.__post_init__(self)
        check_text("--encoder", self.encoder)
        check_positive(self, "min_pixels", "max_pixels", "video_max_pixels", "fps", "max_frames")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise UsageError(
                f"--min-pixels {self.min_pixels} is more than --max-pixels {self.max_pixels}"
            )
        if self.seed < 0:
            raise UsageError(f"--seed must not be negative, got {self.seed}")
        slice_of(self.shards)


@dataclass(frozen=True, kw_only=True)
class RetryConfig(RunConfig):
    """Which failed items to try again, with the configuration that the output has."""

    code: UseAppendAction[tuple[str, ...]] = ()
    """Only items that failed with this error code; may be given several times."""
    follow_links: bool = False
    """Follow symbolic links out of the inputs' folders; once items are planned so, in all runs on
    the output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        known = get_args(ErrorCode)
        for code in self.code:
            if code not in known:
                raise UsageError(f"--code {code}: no such error code; there are {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class StatusConfig(OutputConfig):
    """Which output to look at, and how to print it."""

    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(OutputConfig):
    """Which output to audit, and how deeply."""

    recompute: Count = None
    """Also embed this many random items again, and compare what comes out with what is stored."""
    seed: Count = None
    """Of the random choice, to make the same one again; printed, and drawn where not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "recompute")
        if self.seed is not None and self.seed < 0:
            raise UsageError(f"--seed must not be negative, got {self.seed}")
