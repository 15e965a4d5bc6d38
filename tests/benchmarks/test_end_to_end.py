"""What `benchmarks.end_to_end` makes of what it measured."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.contenders import OURS, first_output, vectors
from benchmarks.corpus import choose
from benchmarks.end_to_end import Measured, summary
from benchmarks.process_tree import Usage


def usage(wall_s: float, cpu_s: float = 1.0) -> Usage:
    return Usage(began=0.0, wall_s=wall_s, cpu_s=cpu_s, peak_bytes=2**30, core_busy=[1.0, 0.5])


def spread(value: float) -> dict[str, float]:
    return {"median": value, "least": value, "most": value}


def test_start_up_is_no_part_of_the_steady_rate() -> None:
    # 10 s to start; 10 images a second, and 5.
    few = Measured(
        items=100,
        usages={OURS: [usage(20.0)], "daft_frame": [usage(30.0)]},
        first_s={OURS: [11.0], "daft_frame": [12.0]},
        cosines=[1.0],
    )
    many = Measured(
        items=400,
        usages={OURS: [usage(50.0)], "daft_frame": [usage(90.0, 3.0)]},
        first_s={OURS: [11.0], "daft_frame": [12.0]},
        cosines=[0.99995],
    )
    same = {"peak_gib": spread(1.0), "core_busy": [spread(1.0), spread(0.5)]}
    assert summary(many, few) == {
        "items": 400,
        "least_cosine": 0.99995,
        "contenders": {
            OURS: {
                "wall_s": spread(50.0),
                "first_s": spread(11.0),
                "cpu_s": spread(1.0),
                "times_ours": spread(1.0),
                "steady_items_per_s": spread(10.0),
            }
            | same,
            "daft_frame": {
                "wall_s": spread(90.0),
                "first_s": spread(12.0),
                "cpu_s": spread(3.0),
                "times_ours": spread(1.8),
                "steady_items_per_s": spread(5.0),
            }
            | same,
        },
    }


def test_a_peers_rows_come_in_the_order_of_names_from_whatever_files(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"path": ["/m/c", "/m/a"], "embedding": [[3.0], [1.0]]}), tmp_path / "1"
    )
    pq.write_table(pa.table({"path": ["/m/b"], "embedding": [[2.0]]}), tmp_path / "2")
    names, found = vectors("daft_frame", tmp_path)
    assert (names, found.tolist()) == (["a", "b", "c"], [[1.0], [2.0], [3.0]])


def test_our_first_output_is_the_first_commit(tmp_path: Path) -> None:
    for path, seconds in (
        ("embeddings/a", 1),
        ("_patchflow/commits/a", 3),
        ("_patchflow/commits/b", 5),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
        os.utime(tmp_path / path, (seconds, seconds))
    assert first_output(OURS, tmp_path) == 3
    assert first_output("daft_frame", tmp_path) == 1


@given(number=st.integers(0, 10**6))
def test_every_picture_is_cut_from_within_its_photo(number: int) -> None:
    sizes = {Path("a"): (400, 400), Path("b"): (3000, 1000)}
    path, cut = choose(list(sizes.items()), number)
    left, top, right, bottom = cut.box
    assert 0 <= left < right <= sizes[path][0]
    assert 0 <= top < bottom <= sizes[path][1]
    assert right - left >= cut.size[0]
    assert bottom - top >= cut.size[1]
