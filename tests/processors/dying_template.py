"""The hostile template, of which every process ends its template soon after it was started."""

from __future__ import annotations

import signal

from processors.sandbox import template
from processors.sandbox.protocol import Start
from tests.processors.hostile_template import open_hostile


class DyingTemplate(template._Template):
    def _fork(self, start: Start, fds: list[int]) -> None:
        super()._fork(start, fds)
        signal.setitimer(signal.ITIMER_REAL, 0.3)


if __name__ == "__main__":
    template._Template = DyingTemplate  # type: ignore[misc]
    template.main(open_hostile)
