"""Random weights that a seed alone decides, on every platform and numpy version. No torch."""

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from encoder.config import Glm4vVisionConfig
from encoder.digests import json_digest

# Part of every stream and digest: raise it when values change.
_SCHEME = "patchflow-random-1"
# Uniform in (-a, a) with transformers' standard deviation of 0.02.
_AMPLITUDE = 0.02 * math.sqrt(3)
# Values made at once: as many as stay in a core's cache through all passes over them.
_CHUNK = 2**16


def random_tensors(
    config: Glm4vVisionConfig, seed: int
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Makes a tower's weights one tensor after the other.

    Each tensor depends on the seed and its own name only, so none needs the others. Norms'
    weights are 1 and biases 0.

    Args:
        config: The tower's shape.
        seed: Not negative.

    Yields:
        Name and values, in the order of `config.tensor_shapes()`.

    Raises:
        ValueError: The seed is not an integer, or negative.
    """
    _check_seed(seed)
    for name, shape in config.tensor_shapes().items():
        if name.endswith(".bias"):
            yield name, np.zeros(shape, np.float32)
        elif len(shape) == 1:
            yield name, np.ones(shape, np.float32)
        else:
            yield name, _uniform(math.prod(shape), f"{_SCHEME}:{seed}:{name}").reshape(shape)


def preset_digest(config: Glm4vVisionConfig, seed: int) -> str:
    """Returns 128 bits, hexadecimal, that name what `random_tensors` would make.

    Raises:
        ValueError: The seed is not an integer, or negative.
    """
    _check_seed(seed)
    return json_digest({"scheme": _SCHEME, "config": config.to_dict(), "seed": seed})


def _check_seed(seed: int) -> None:
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed={seed!r} is not an integer of 0 or more")


def _uniform(count: int, key: str) -> npt.NDArray[np.float32]:
    """Returns `count` values uniform in (-a, a).

    numpy promises the stream of a bit generator (NEP 19), not those of its distributions. From
    there on it is 24-bit integers, which float32 holds exactly, and one rounded product.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    generator = np.random.Philox(key=int.from_bytes(digest, "little"))
    step = np.float32(_AMPLITUDE / 2**24)
    values = np.empty(count, np.float32)
    for start in range(0, count, _CHUNK):
        part = values[start : start + _CHUNK]
        raw = generator.random_raw((len(part) + 1) // 2).astype("<u8").view("<u4")[: len(part)]
        odd = ((raw >> 8).astype(np.int32) << 1) - (2**24 - 1)
        np.multiply(odd.astype(np.float32), step, out=part)
    return values
