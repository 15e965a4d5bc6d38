"""What a local run begins before its imports: once, and not where there is a cluster to join."""

from __future__ import annotations

import pytest

from tests.support.scripts import run

_NESTED = """
import os
import psutil
from pipeline.head_start import head_start
from pipeline.worker_start import ADDRESS

def seen():
    return os.environ["RAY_AUTH_TOKEN"], os.environ[ADDRESS], psutil.Process().children()

with head_start():
    before = seen()
    with head_start():
        within = seen()
    print(len(before[2]), before == within == seen())
print(ADDRESS in os.environ, psutil.Process().children())
"""
_PLAIN = """
import os
FIRST
import psutil
from pipeline.head_start import head_start

before = dict(os.environ)
with head_start():
    new = [name for name in os.environ if os.environ[name] != before.get(name)]
    print(psutil.Process().children(), sorted(name for name in new if name.startswith("RAY_")))
"""


def test_a_head_start_within_another_adds_nothing() -> None:
    ended = run(_NESTED)
    assert (ended.returncode, ended.stdout) == (0, "1 True\nFalse []\n"), ended.stderr


@pytest.mark.parametrize(
    "first", ["os.environ['RAY_ADDRESS'] = '127.0.0.1:6379'", "import ray"], ids=["cluster", "ray"]
)
def test_nothing_begins_in_a_cluster_or_after_the_import_of_ray(first: str) -> None:
    ended = run(_PLAIN.replace("FIRST", first))
    assert (ended.returncode, ended.stdout) == (0, "[] []\n"), ended.stderr
