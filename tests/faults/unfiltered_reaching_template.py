"""The reaching template on a system without libseccomp."""

from __future__ import annotations

import sys

sys.modules["pyseccomp"] = None  # type: ignore[assignment]

from processors.sandbox.template import main  # noqa: E402
from tests.faults.reaching_template import open_reaching  # noqa: E402

if __name__ == "__main__":
    main(open_reaching)
