"""A checkpoint's `config.json` on this machine. No torch, no fsspec."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from encoder.json_text import parse_object
from encoder.local_file import read_local_json

T = TypeVar("T")


def read_config_file(folder: str | os.PathLike[str], parse: Callable[[Mapping[str, Any]], T]) -> T:
    """Parses the `config.json` of a local folder.

    Args:
        folder: Where it lies.
        parse: What makes a configuration of the JSON object, or raises ValueError.

    Raises:
        ValueError: There is none, it is no JSON object, is not the folder's own, is too large, or
            `parse` refuses it; one line that names the file.
    """
    path = Path(folder) / "config.json"
    try:
        return parse(parse_object(read_local_json(path)))
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror}; from_pretrained takes a local folder that holds "
            "config.json (load_encoder takes s3:// and hf:// as well)"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: broken JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
