"""The reaching template on a system with neither libseccomp nor Landlock."""

from __future__ import annotations

import sys

sys.modules["pyseccomp"] = None  # type: ignore[assignment]

from processors.sandbox import lockdown  # noqa: E402
from processors.sandbox.template import main  # noqa: E402
from tests.faults.reaching_template import open_reaching  # noqa: E402

if __name__ == "__main__":
    lockdown._CREATE_RULESET = 100_000  # type: ignore[misc]
    main(open_reaching)
