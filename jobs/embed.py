"""`embed INPUT... --output OUT`: plan if need be, embed what is not committed, print a summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.head_start import head_start

if TYPE_CHECKING:
    from pipeline.config import EmbedConfig


def job(config: EmbedConfig) -> int:
    """Embed images and clips into Parquet. Run it again to resume, or to add what is new."""
    from jobs.console import print_plan  # noqa: PLC0415 (as below)
    from jobs.summary import print_summary  # noqa: PLC0415
    from pipeline.embed import embed  # noqa: PLC0415

    print_summary(embed(config, on_plan=print_plan))
    return 0


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m jobs.embed`."""
    with head_start():
        from jobs import console  # noqa: PLC0415 (beside the imports of the workers)
        from pipeline.config import EmbedConfig  # noqa: PLC0415

        console.run(EmbedConfig, job, "embed", args)


if __name__ == "__main__":
    main()
