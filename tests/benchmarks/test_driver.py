"""What `benchmarks.driver` measures and makes of its figures."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.driver import CASES, describe


def test_a_run_of_stages_that_do_nothing_is_measured() -> None:
    command = [sys.executable, "-m", "benchmarks.driver", "--case", "web photos"]
    done = subprocess.run(
        [*command, "--items", "4096", "--actors", "1"],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["items"] == 4096
    assert found["rows_a_block"] >= 24
    assert {"driver", "coordinator", "preprocess", "encode"} <= found["cpu_ms_a_block"].keys()
    assert all(figure > 0 for figure in (found["items_s"], found["driver_items_s"]))
    lines = list(describe("web photos", found))
    assert len(lines) == 3


def test_a_block_has_the_rows_whose_patches_fill_it() -> None:
    # 64 MiB: of 19,600, 700,000 and 50,176 pixels, three bytes each.
    assert [images.rows_a_block for images in CASES.values()] == [1142, 32, 446]
