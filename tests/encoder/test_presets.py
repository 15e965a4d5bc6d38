import hashlib

import numpy as np
import pytest

from encoder import PRESETS, Glm4vVisionConfig, preset_digest, random_tensors


def test_the_stream_is_pinned(small_config: Glm4vVisionConfig) -> None:
    # Stored outputs name their encoder by seed: these values may never change.
    qkv = dict(random_tensors(small_config, seed=7))["blocks.1.attn.qkv.weight"]
    assert qkv.flatten()[:3].tolist() == [
        0.01631643995642662,
        -0.013692284002900124,
        0.009490654803812504,
    ]
    assert hashlib.blake2b(qkv.tobytes(), digest_size=8).hexdigest() == "74be4c2149e8269a"


def test_the_digest_is_pinned() -> None:
    assert preset_digest(PRESETS["tiny"], seed=0) == "8b680d91d26401ba28c83917cedae72a"


def test_matrices_are_uniform_norms_one_and_biases_zero(small_config: Glm4vVisionConfig) -> None:
    for name, values in random_tensors(PRESETS["tiny"], seed=0):
        assert values.dtype == np.float32
        if name.endswith(".bias"):
            assert not values.any()
        elif values.ndim == 1:
            assert (values == 1).all()
        else:
            assert abs(values.std() - 0.02) < 2e-4
            assert abs(values.mean()) < 5e-4
            assert 0.034 < np.abs(values).max() < 0.02 * 3**0.5


def test_shapes_are_the_configs(small_config: Glm4vVisionConfig) -> None:
    shapes = {name: values.shape for name, values in random_tensors(small_config, seed=0)}
    assert shapes == small_config.tensor_shapes()


def test_a_tensor_depends_on_seed_and_name_only(small_config: Glm4vVisionConfig) -> None:
    deeper = Glm4vVisionConfig.from_dict(small_config.to_dict() | {"depth": 3})
    first, again = (dict(random_tensors(config, seed=1)) for config in (small_config, deeper))
    name = "blocks.0.attn.proj.weight"
    assert np.array_equal(first[name], again[name])
    assert not np.array_equal(first[name], first["blocks.1.attn.proj.weight"])
    assert not np.array_equal(first[name], dict(random_tensors(small_config, seed=2))[name])


def test_long_tensors_do_not_repeat() -> None:
    config = Glm4vVisionConfig(depth=1, hidden_size=768, out_hidden_size=8, intermediate_size=8)
    values = dict(random_tensors(config, seed=0))["blocks.0.attn.qkv.weight"].flatten()
    assert values.size > 2**20
    assert not np.array_equal(values[: -(2**16)], values[2**16 :])
    assert hashlib.blake2b(values.tobytes(), digest_size=8).hexdigest() == "fa88779268d85f7a"


def test_digests_tell_config_and_seed_apart(small_config: Glm4vVisionConfig) -> None:
    digests = {
        preset_digest(config, seed) for config in (small_config, PRESETS["tiny"]) for seed in (0, 1)
    }
    assert len(digests) == 4


@pytest.mark.parametrize("seed", [-1, 1.0, True])
def test_seeds_that_are_none_are_refused(small_config: Glm4vVisionConfig, seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed={seed} is not an integer of 0 or more"):
        next(random_tensors(small_config, seed))
    with pytest.raises(ValueError, match=f"seed={seed} is not an integer of 0 or more"):
        preset_digest(small_config, seed)
