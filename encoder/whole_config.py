"""A whole model's configuration: the vision tower's, and what goes with it."""

import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from encoder.config import ARCHITECTURES, Glm4vVisionConfig
from encoder.config_file import read_config_file
from encoder.describe import describe

_TOKENS = ("image", "video", "image_start", "image_end", "video_start", "video_end")
_TOKEN_IDS = tuple(f"{token}_token_id" for token in _TOKENS)
# Where transformers' classes have other defaults than GlmgaConfig.
_VIDEO_ENDS = {"video_start_token_id": 151341, "video_end_token_id": 151342}
_FAMILY_TOKEN_IDS: dict[str, dict[str, int]] = {
    "glm4v": _VIDEO_ENDS,
    "glm4v_moe": {"image_token_id": 151363, "video_token_id": 151364, **_VIDEO_ENDS},
}
# What transformers writes at the root of every config.json, whatever the model.
_OF_THE_FILE = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
)


@dataclass(frozen=True, kw_only=True)
class GlmgaConfig:
    """Configuration of a whole model of the family, by the names in its `config.json`.

    The vision part is what the encoder uses. Token ids and the text part are carried, for
    whoever feeds the tokens to the language model. Defaults are those of transformers'
    `models/glmga/configuration_glmga.py`.

    >>> GlmgaConfig(vision_config=Glm4vVisionConfig(depth=6)).image_token_id
    151343

    Attributes:
        vision_config: The tower's; a mapping, which `Glm4vVisionConfig.from_dict` reads, or None
            for the default is taken too.
        text_config: The language model's, as the checkpoint has it.
        image_token_id: What stands in the text for each token of an image.
        video_token_id: What stands in the text for each token of a clip.
        image_start_token_id: Before an image.
        image_end_token_id: After it.
        video_start_token_id: Before a clip.
        video_end_token_id: After it.
        tie_word_embeddings: Whether the language model's output weights are its embeddings.
        model_type: `glm4v`, `glm4v_moe`, `glm46v` or `glmga`.

    Raises:
        ValueError: A value is none of its field's; the message shows it.
    """

    vision_config: Glm4vVisionConfig = field(default_factory=Glm4vVisionConfig)
    text_config: Mapping[str, Any] = field(default_factory=dict, hash=False)
    image_token_id: int = 151343
    video_token_id: int = 151344
    image_start_token_id: int = 151339
    image_end_token_id: int = 151340
    video_start_token_id: int = 151361
    video_end_token_id: int = 151362
    tie_word_embeddings: bool = False
    model_type: str = "glmga"

    def __post_init__(self) -> None:
        if self.model_type not in ARCHITECTURES:
            raise ValueError(
                f"model_type={describe(self.model_type)} is none of {', '.join(ARCHITECTURES)}"
            )
        for name in _TOKEN_IDS:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name}={describe(value)} is not an integer of 0 or more")
        if not isinstance(self.tie_word_embeddings, bool):
            raise ValueError(
                f"tie_word_embeddings={describe(self.tie_word_embeddings)} is not a bool"
            )
        # Frozen, so the forms that transformers accepts are settled behind its back.
        object.__setattr__(self, "vision_config", _parse_vision(self.vision_config))
        object.__setattr__(self, "text_config", _parse_text(self.text_config))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "GlmgaConfig":
        """Reads the parsed `config.json` of a whole model.

        The vision part is read as `Glm4vVisionConfig.from_dict` does. Text fields at the root, as
        GLM-4.1V has them, become `text_config`, under what that has itself. A missing or null
        token id takes the default of transformers' class for the `model_type`.

        Args:
            config: The JSON object.

        Raises:
            ValueError: Another architecture, named in the message, a vision configuration alone,
                or a value that is none of its field's.
        """
        vision = Glm4vVisionConfig.from_dict(config)
        if config.get("vision_config") is None:
            raise ValueError(
                "no vision_config: not a whole model's configuration; "
                "Glm4vVisionConfig reads a vision tower's"
            )
        names = {field.name for field in fields(cls)}
        given = {name: value for name, value in config.items() if value is not None}
        own = {name: value for name, value in given.items() if name in names}
        at_root = {
            name: value for name, value in given.items() if name not in {*names, *_OF_THE_FILE}
        }
        text = at_root | _parse_text(config.get("text_config"))
        # Before version 5, transformers wrote it there.
        tied: dict[str, Any] = {"tie_word_embeddings": text.get("tie_word_embeddings") or False}
        ids = _FAMILY_TOKEN_IDS.get(own.get("model_type", ""), {})
        return cls(**tied | ids | own | {"vision_config": vision, "text_config": text})

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> "GlmgaConfig":
        """Reads the `config.json` of a checkpoint.

        Args:
            folder: On this machine.

        Raises:
            ValueError: No such file, broken JSON, or what `from_dict` refuses; one line that
                names the file.
        """
        return read_config_file(folder, cls.from_dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns what `from_dict` reads back; JSON types only, if the text part has no others."""
        return {**asdict(self), "vision_config": self.vision_config.to_dict()}


def _parse_vision(given: object) -> Glm4vVisionConfig:
    if isinstance(given, Glm4vVisionConfig):
        return given
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(
            f"vision_config={describe(given)} is neither a Glm4vVisionConfig of encoder nor a "
            "mapping, such as its to_dict()"
        )
    return Glm4vVisionConfig.from_dict(given or {})


def _parse_text(given: object) -> dict[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"text_config={describe(given)} is not a mapping")
    return deepcopy(dict(given or {}))
