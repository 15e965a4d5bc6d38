"""The same job four ways: patchflow, and what a user would pick instead."""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import save_file

from benchmarks.corpus import CACHE
from encoder import load_encoder

ROOT = Path(__file__).parents[1]
PEERS = Path(__file__).parent / "peers"
# Of their own, which `make bench` makes: see its requirements.txt.
PEERS_PYTHON = ROOT / ".venv-peers/bin/python"
PEER_NAMES = ("plain_loop", "ray_data", "daft_frame")
OURS = ("--encoder", "tiny", "--max-pixels", 224 * 224, "--shard-rows", 256)


def our_command(corpus: Path, output: Path) -> list[object]:
    """The job as patchflow does it."""
    return [sys.executable, "-m", "jobs.embed", corpus, "--output", output, *OURS]


def peer_command(name: str, corpus: Path, output: Path, **settings: object) -> list[object]:
    """The job as a peer does it, with its best settings where none are given."""
    if not PEERS_PYTHON.exists():
        raise SystemExit(f"{PEERS_PYTHON} is missing; `make bench` makes it")
    options = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    return [PEERS_PYTHON, PEERS / f"{name}.py", corpus, output, tiny_weights(), *options]


def tiny_weights() -> Path:
    """A file of the tiny preset's weights, whose names are transformers' as well."""
    path = CACHE / "tiny.safetensors"
    CACHE.mkdir(exist_ok=True)
    save_file(load_encoder("tiny", seed=0).state_dict(), path)
    return path
