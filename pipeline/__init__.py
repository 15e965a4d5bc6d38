"""The Ray Data pipeline: collections of media in, partitioned Parquet of embeddings out.

Its stages are run by `jobs`. What a library's user needs of it is a model and its processors:

    from pipeline import create_complete_glm4v_vision_pipeline

    model, image_processor, video_processor = create_complete_glm4v_vision_pipeline("tiny")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.library import create_complete_glm4v_vision_pipeline

__all__ = ["create_complete_glm4v_vision_pipeline"]

# Whoever imports one of the pipeline's modules does not pay for torch.
_HOME = {"create_complete_glm4v_vision_pipeline": "library"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # For help() and completion, which do not read `_HOME`.
