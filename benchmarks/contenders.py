"""The same job as patchflow does it, and as what a user would pick instead does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
from safetensors.torch import save_file

from benchmarks.corpus import CACHE
from encoder import load_encoder

ROOT = Path(__file__).parents[1]
PEERS = Path(__file__).parent / "peers"
# Of their own, which `make bench` makes: see its requirements.txt.
PEERS_PYTHON = ROOT / ".venv-peers/bin/python"
OURS = "patchflow"
OF_JPEGS = ("plain_loop", "ray_data", "daft_frame")
OF_CLIPS = ("video_loop",)
MAX_PIXELS = 224 * 224
VIDEO_MAX_PIXELS = 16 * MAX_PIXELS
LEAST_COSINE = 0.9999


def command(name: str, media: Path, output: Path, **settings: object) -> list[object]:
    """The job's command line; a peer has its best settings but for those that are given."""
    if name == OURS:
        budgets = ["--max-pixels", MAX_PIXELS, "--video-max-pixels", VIDEO_MAX_PIXELS]
        job = [sys.executable, "-m", "jobs.embed", media, "--output", output]
        return [*job, "--encoder", "tiny", *budgets, "--shard-rows", 256]
    if not PEERS_PYTHON.exists():
        raise SystemExit(f"{PEERS_PYTHON} is missing; `make bench` makes it")
    options = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    return [PEERS_PYTHON, PEERS / f"{name}.py", media, output, tiny_weights(), *options]


def tiny_weights() -> Path:
    """A file of the tiny preset's weights, whose names are transformers' as well."""
    path = CACHE / "tiny.safetensors"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        save_file(load_encoder("tiny", seed=0).state_dict(), path)
    return path


def first_output(name: str, output: Path) -> float:
    """When the first part of the output was whole, in seconds since the epoch."""
    found = output / "_patchflow/commits" if name == OURS else output
    return min(path.stat().st_mtime for path in found.rglob("*") if path.is_file())


def vectors(name: str, output: Path) -> tuple[list[str], np.ndarray]:
    """File names in order, and float32 `[items, 256]`."""
    folder, column = (output / "embeddings", "uri") if name == OURS else (output, "path")
    table = ds.dataset(folder, format="parquet").to_table([column, "embedding"]).sort_by(column)
    names = [Path(path).name for path in table[column].to_pylist()]
    return names, np.array(table["embedding"].to_pylist(), np.float32)


def check(outputs: dict[str, Path], media: Path) -> float:
    """Holds the outputs of one round against the media and against each other.

    Returns:
        The least cosine of one of patchflow's vectors and a peer's.

    Raises:
        SystemExit: A row is missing, `verify` finds fault, or vectors differ.
    """
    wanted = sorted(path.name for path in media.iterdir())
    verify = [sys.executable, "-m", "jobs.verify", "--output", str(outputs[OURS])]
    if subprocess.run(verify, stdout=2, check=False).returncode:
        raise SystemExit(f"{outputs[OURS]}: verify found fault")
    found = {}
    for name, output in outputs.items():
        names, found[name] = vectors(name, output)
        if names != wanted:
            raise SystemExit(f"{name}: {len(names)} rows, not those of {len(wanted)} files")
        found[name] /= np.linalg.norm(found[name], axis=1, keepdims=True)
    ours = found.pop(OURS)
    least = min(float((ours * theirs).sum(1).min()) for theirs in found.values())
    if least < LEAST_COSINE:
        raise SystemExit(f"vectors differ: a cosine of {least}")
    return least
