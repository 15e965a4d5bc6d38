"""What actors may hold in memory, in bytes: arithmetic over the options that decide it.

It counts what is a process's own, and what a decoder process shares with its actor: neither pages
of Ray's object store, which has its own bound, nor a GPU's memory, where packs that do not fit are
halved.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from encoder import weight_bytes

if TYPE_CHECKING:
    from encoder import Glm4vVisionConfig
    from pipeline.encode import EncodeConfig
    from pipeline.options import ProcessorOptions
    from pipeline.preprocess import PreprocessConfig

# Files that a call of a preprocessing actor reads ahead: few enough that its memory stays small
# beside its output. A larger one is read alone.
FETCHED_BYTES: Final = 64 * 2**20
# The most that `PreprocessConfig.block_bytes` is. A clip that may have more has its own block.
BLOCK_BYTES: Final = 64 * 2**20

# Measured: imports, and what threads and allocators keep beside what is counted here.
_PREPROCESS_IMPORTS = 320 * 2**20
_DECODER_IMPORTS = 64 * 2**20  # Of the template and of the process that it forks.
_ENCODE_IMPORTS = 400 * 2**20
# Not measured: CUDA's libraries, and a compiler's.
_CUDA_IMPORTS = 2 * 2**30
# A preprocessing actor's calls at once, for each of its decoder processes; files and frames that it
# shares with that.
_CALLS = 2
_FILES = _FRAMES = 2
# Patches of a pack that a GPU's actor holds: laid out, on their way, and handed back for reuse.
_PINNED = 3
# Places along sides of which an encoder keeps tables of positions.
_TABLES = 2**15
# What a claim is for. Files and frames that are larger come alone, and rarely to all actors of a
# machine at once: what an actor may hold of them would keep most others off it for nothing.
_ORDINARY_BYTES = 32 * 2**20


@dataclass(frozen=True, kw_only=True)
class PreprocessBytes:
    """The most that a preprocessing actor holds, with its decoder process.

    Attributes:
        own: The actor's alone.
        shared: Files and frames between the two.
        decoder: The decoder process's alone, with its template's.
    """

    own: int
    shared: int
    decoder: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.own + self.shared + self.decoder


@dataclass(frozen=True, kw_only=True)
class Claims:
    """Bytes that an actor of each kind asks Ray for: enough for all but outsized files."""

    preprocess: int
    encode: int


def claims(preprocess: PreprocessConfig, encode: EncodeConfig, tower: Glm4vVisionConfig) -> Claims:
    """What actors of a run claim."""
    limits = preprocess.limits
    ordinary = replace(
        limits,
        max_file_bytes=min(limits.max_file_bytes, _ORDINARY_BYTES),
        max_source_pixels=min(limits.max_source_pixels, _ORDINARY_BYTES // 3),
    )
    options = preprocess.options
    return Claims(
        preprocess=preprocess_bytes(replace(preprocess, limits=ordinary)).total,
        encode=encode_bytes(encode, tower, options, segment_pixels=options.most_still_pixels),
    )


def preprocess_bytes(config: PreprocessConfig) -> PreprocessBytes:
    """What a preprocessing actor may hold, whatever its files are."""
    file, frame = config.limits.max_file_bytes, 3 * config.limits.max_source_pixels
    # A call joins its images' patches. The engine keeps a block until it has the next one, and a
    # call that hands over its last one has given its decoder to another. What is alone in its
    # block is not copied.
    most = max(config.item_bytes, config.clip_bytes)
    block = BLOCK_BYTES + config.item_bytes
    decoders, calls = config.decoders, _CALLS * config.decoders
    patches = max((2 * calls + decoders) * block, calls * most)
    return PreprocessBytes(
        # The parts that a file comes in from S3 are joined. Of a frame, one side is resized first.
        own=_PREPROCESS_IMPORTS
        + calls * (max(FETCHED_BYTES, file) + file)
        + decoders * frame
        + patches,
        shared=decoders * (_FILES * file + _FRAMES * frame),
        decoder=decoders * (_DECODER_IMPORTS + config.limits.decoder_memory_bytes),
    )


def most_segment_pixels(config: PreprocessConfig) -> int:
    """The most pixels of a still, or of a pair of a clip's frames, when they are resized."""
    options = config.options
    # A clip of two frames spends all of its budget on them, but is not enlarged.
    pair = options.most_clip_pixels // options.videos.temporal_patch_size
    return max(options.most_still_pixels, min(pair, config.limits.max_source_pixels))


def encode_bytes(
    config: EncodeConfig,
    tower: Glm4vVisionConfig,
    options: ProcessorOptions,
    *,
    segment_pixels: int,
) -> int:
    """What an encoder actor may hold of its machine's memory.

    Args:
        config: The stage's.
        tower: The encoder's shape.
        options: What items become.
        segment_pixels: Of the largest segment that comes.
    """
    full = config.token_budget * tower.spatial_merge_size**2
    patches = max(full, segment_pixels // tower.patch_size**2)
    if config.device == "cuda":
        held = _CUDA_IMPORTS + _PINNED * patches * tower.patch_dim
    else:
        # Twice 16 places and weights; sines and cosines of a quarter of a head each.
        tables = _TABLES * (384 + 2 * tower.head_dim)
        held = weight_bytes(tower, config.dtype) + tables + patches * patch_bytes(tower)
    return _ENCODE_IMPORTS + held + config.calls * _result_bytes(config, tower, options)


def patch_bytes(tower: Glm4vVisionConfig) -> int:
    """What a patch of a pack takes of a CPU's memory while the pack runs, at the most.

    Counted in float32 values: four widths that last through a block or the merger, and what its
    largest step has at a time: queries, keys and values, as they are and rotated, with the result;
    the MLP's gate, its activation and the other factor; the same of the merger, a token's share.
    """
    dim, out = tower.hidden_size, tower.out_hidden_size
    merged = 3 * tower.intermediate_size // tower.spatial_merge_size**2 + out
    values = 4 * dim + max(8 * dim, 3 * out, merged, tower.patch_dim)
    return 4 * values + tower.patch_dim


def _result_bytes(config: EncodeConfig, tower: Glm4vVisionConfig, options: ProcessorOptions) -> int:
    """What a block's vectors and tokens take until they are in the object store."""
    segments = options.sampling.most_frames // tower.temporal_patch_size
    # In float32 as they come and as they are stored, and items' own in float64.
    vectors = 16 * tower.out_hidden_size * max(segments, 1)
    if config.level != "token":
        return vectors
    pixels = max(
        BLOCK_BYTES // 3,
        options.most_still_pixels,
        options.most_clip_pixels // tower.temporal_patch_size,
    )
    tokens = pixels // (tower.patch_size * tower.spatial_merge_size) ** 2
    return vectors + 2 * tower.out_hidden_size * tokens
