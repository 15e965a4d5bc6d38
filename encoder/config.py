"""The vision tower's shape: every width and count, the shape of every tensor, the presets."""

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from encoder.config_file import read_config_file
from encoder.describe import describe

ARCHITECTURES = ("glm4v", "glm4v_moe", "glm46v", "glmga")
_ALIASES = {"num_attention_heads": "num_heads", "num_hidden_layers": "depth"}
# Head counts that an error proposes; the default's width has 16, others over 50.
_MAX_PROPOSED = 8
# Far over any tower's; counting shapes or heads with more would take all memory, or never end.
_LARGEST = {
    "depth": 1000,
    "hidden_size": 2**20,
    "num_heads": 2**18,
    "in_channels": 2**10,
    "image_size": 2**16,
    "patch_size": 2**10,
    "temporal_patch_size": 2**10,
    "spatial_merge_size": 2**10,
    "out_hidden_size": 2**20,
    "intermediate_size": 2**20,
}
_MOST_PARAMETERS = 10**10  # 40 GB in float32; the largest tower that is published has 0.9 billion


@dataclass(frozen=True, kw_only=True)
class Glm4vVisionConfig:
    """Shape of one GLM-4V vision tower; the defaults are GLM-4.1V-9B's (892 M parameters).

    Field names are those of `vision_config` in a checkpoint's `config.json`, and defaults those of
    transformers' class of the same name, `models/glm4v/configuration_glm4v.py`.

    >>> config = Glm4vVisionConfig(depth=6, hidden_size=384, num_heads=6, out_hidden_size=768)
    >>> config.head_dim, config.num_parameters
    (64, 42853248)

    Attributes:
        depth: Number of transformer blocks.
        hidden_size: Width of the blocks.
        num_heads: Attention heads a block.
        in_channels: Colour channels of a patch.
        image_size: Side, in pixels, of the picture the learned position table was made for.
        patch_size: Side of a patch, in pixels.
        temporal_patch_size: Frames a patch spans.
        spatial_merge_size: Side, in patches, of the square that becomes one token.
        out_hidden_size: Width of a token, and of the MLP *inside* every block.
        intermediate_size: Width of the merger's MLP.
        hidden_act: Activation of the gated MLPs. Every published tower has `"silu"`.
        attention_bias: Whether the fused query, key and value projection has a bias.
        rms_norm_eps: Added to the mean square in the root-mean-square norms.
        rope_theta: Base wavelength of the rotary position embedding.

    Raises:
        ValueError: A value is out of range; the message shows it and what would do.
    """

    depth: int = 24
    hidden_size: int = 1536
    num_heads: int = 12
    in_channels: int = 3
    image_size: int = 336
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    out_hidden_size: int = 4096
    intermediate_size: int = 13696
    hidden_act: str = "silu"
    attention_bias: bool = False
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), field.type)
            if field.type is float:  # 10000 and 10000.0 are one tower, and of one digest.
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        for name, largest in _LARGEST.items():
            if getattr(self, name) > largest:
                raise ValueError(
                    f"{name}={describe(getattr(self, name))} is over {largest}, the most supported"
                )
        if self.hidden_act != "silu":
            raise ValueError(f"hidden_act={describe(self.hidden_act)} is not supported; 'silu' is")
        if self.image_size < self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} is smaller than patch_size={self.patch_size}"
            )
        # Rotary embedding halves a head for rows and columns, and rotates pairs in each half.
        if self.hidden_size % 4 != 0:
            raise ValueError(f"hidden_size={self.hidden_size} is not a multiple of 4")
        if self.hidden_size % (4 * self.num_heads) != 0:
            raise ValueError(
                f"num_heads={self.num_heads} does not cut hidden_size={self.hidden_size} into "
                f"heads whose width is a multiple of 4; {self._proposed_counts()}"
            )
        if self.num_parameters > _MOST_PARAMETERS:
            raise ValueError(
                f"a tower of {self.num_parameters:,} parameters is over {_MOST_PARAMETERS:,}, the "
                "most supported"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def position_grid_size(self) -> int:
        """Side of the square of learned position embeddings, in patches."""
        return self.image_size // self.patch_size

    @property
    def num_positions(self) -> int:
        """Number of learned position embeddings."""
        return self.position_grid_size**2

    @property
    def patch_dim(self) -> int:
        """Values in one patch: channels, frames, rows, columns."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def num_parameters(self) -> int:
        """Counted from the shapes, not estimated."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    def _proposed_counts(self) -> str:
        quarter = self.hidden_size // 4
        counts = [count for count in range(1, quarter + 1) if quarter % count == 0]
        nearest = sorted(counts, key=lambda count: abs(count - self.num_heads))[:_MAX_PROPOSED]
        which = "these counts" if len(nearest) == len(counts) else "the nearest counts that"
        return f"{which} do: {sorted(nearest)}"

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of every tensor of the tower, by its name without prefix.

        Names and shapes are those of transformers' `Glm4vVisionModel`.
        """
        dim, out, merge = self.hidden_size, self.out_hidden_size, self.spatial_merge_size
        patch = (self.temporal_patch_size, self.patch_size, self.patch_size)
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.position_embedding.weight": (self.num_positions, dim),
            "patch_embed.proj.weight": (dim, self.in_channels, *patch),
            "patch_embed.proj.bias": (dim,),
        }
        for block in (f"blocks.{i}" for i in range(self.depth)):
            shapes[f"{block}.norm1.weight"] = (dim,)
            shapes[f"{block}.norm2.weight"] = (dim,)
            shapes[f"{block}.attn.qkv.weight"] = (3 * dim, dim)
            if self.attention_bias:
                shapes[f"{block}.attn.qkv.bias"] = (3 * dim,)
            shapes[f"{block}.attn.proj.weight"] = (dim, dim)
            shapes[f"{block}.mlp.gate_proj.weight"] = (out, dim)
            shapes[f"{block}.mlp.up_proj.weight"] = (out, dim)
            shapes[f"{block}.mlp.down_proj.weight"] = (dim, out)
        return shapes | {
            "merger.proj.weight": (out, out),
            "merger.post_projection_norm.weight": (out,),
            "merger.post_projection_norm.bias": (out,),
            "merger.gate_proj.weight": (self.intermediate_size, out),
            "merger.up_proj.weight": (self.intermediate_size, out),
            "merger.down_proj.weight": (out, self.intermediate_size),
            "post_conv_layernorm.weight": (dim,),
            "downsample.weight": (out, dim, merge, merge),
            "downsample.bias": (out,),
            "post_layernorm.weight": (dim,),
        }

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "Glm4vVisionConfig":
        """Reads a whole model's `config.json`, or a bare vision configuration.

        Follows transformers 5.23: `num_attention_heads` and `num_hidden_layers` are aliases, a
        missing or null field takes its default, and `rope_parameters["rope_theta"]` wins over a
        `rope_theta` beside it. Fields that do not shape the tower are passed over.

        Args:
            config: The parsed JSON.

        Raises:
            ValueError: Not a mapping, another architecture, named in the message, or a value out
                of range.
        """
        if not isinstance(config, Mapping):
            raise ValueError(
                f"config={describe(config)} is not an object; from_dict takes the parsed "
                "config.json, from_pretrained its folder"
            )
        vision = config.get("vision_config")
        if vision is None and ("text_config" in config or "architectures" in config):
            raise ValueError(
                f"model_type {describe(config.get('model_type'))} has no vision_config"
            )
        for part in (vision, config):
            if part is not None:
                if not isinstance(part, Mapping):
                    raise ValueError(f"vision_config={describe(part)} is not an object")
                _check_architecture(part.get("model_type"))
        given = config if vision is None else vision
        source = {name: value for name, value in given.items() if value is not None}
        for alias, name in _ALIASES.items():
            if alias in source:
                source.setdefault(name, source[alias])
        source |= _read_rope_theta(source)
        names = {field.name for field in fields(cls)}
        result = cls(**{name: value for name, value in source.items() if name in names})
        # transformers builds rotary tables from head_dim but cuts heads by hidden_size, so that
        # a head_dim that differs cannot run there either.
        if source.get("head_dim") not in (None, result.head_dim):
            raise ValueError(
                f"head_dim={describe(source['head_dim'])} is not hidden_size / "
                f"num_heads={result.head_dim}"
            )
        return result

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> "Glm4vVisionConfig":
        """Reads the `config.json` of a checkpoint, or of a vision tower by itself.

        Args:
            folder: On this machine. Of one elsewhere, `load_encoder(location).config` is this.

        Raises:
            ValueError: No such file, broken JSON, or what `from_dict` refuses; one line that
                names the file.
        """
        return read_config_file(folder, cls.from_dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns what `from_dict` reads back, JSON types only."""
        return {"model_type": "glm4v_vision", **asdict(self)}


def _check_type(name: str, value: object, kind: Any) -> None:
    if kind is bool or kind is str:
        if not isinstance(value, kind):
            raise ValueError(f"{name}={describe(value)} is not a {kind.__name__}")
        return
    allowed = int if kind is int else (int, float)
    number = isinstance(value, allowed) and not isinstance(value, bool)
    if not (number and 0 < value <= sys.float_info.max):  # type: ignore[operator]
        raise ValueError(
            f"{name}={describe(value)} is not a positive {'integer' if kind is int else 'number'}"
        )


def _check_architecture(model_type: object) -> None:
    if model_type is None or str(model_type).removesuffix("_vision") in ARCHITECTURES:
        return
    raise ValueError(
        f"model_type {describe(model_type)} is another architecture; "
        f"supported: {', '.join(ARCHITECTURES)}, each with or without the suffix _vision"
    )


def _read_rope_theta(source: Mapping[str, Any]) -> dict[str, Any]:
    parameters = source.get("rope_parameters", {})
    if not isinstance(parameters, Mapping):
        raise ValueError(f"rope_parameters={describe(parameters)} is not an object")
    rope_type = parameters.get("rope_type", "axial")
    # transformers reads "default" as "axial" for these towers.
    if rope_type not in ("axial", "default"):
        raise ValueError(f"rope_type {describe(rope_type)} is not supported; 'axial' is")
    return {"rope_theta": parameters["rope_theta"]} if "rope_theta" in parameters else {}


PRESETS = {
    "tiny": Glm4vVisionConfig(
        depth=1, hidden_size=128, num_heads=4, out_hidden_size=256, intermediate_size=1856
    ),
    "small": Glm4vVisionConfig(
        depth=6, hidden_size=384, num_heads=6, out_hidden_size=768, intermediate_size=6144
    ),
    "medium": Glm4vVisionConfig(
        depth=12, hidden_size=768, num_heads=12, out_hidden_size=1536, intermediate_size=2560
    ),
    "large": Glm4vVisionConfig(),
}
