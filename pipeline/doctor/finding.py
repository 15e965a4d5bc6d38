"""What a step found, in a form that JSON carries from its process and from other nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

Result = Literal["ok", "warning", "broken"]
Value = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the table.

    Attributes:
        step: Which step found it.
        result: `broken` means that a run would fail or compute wrong results here.
        figure: What was measured or seen, one line.
        advice: What to do about it; empty where nothing is to be done.
        device: `GPU 0` or `CPU` where the step is about one device, else empty.
        values: The numbers behind it, by name.
    """

    step: str
    result: Result
    figure: str
    advice: str = ""
    device: str = ""
    values: Mapping[str, Value] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Finding:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: It is something else.
        """
        found = json.loads(line)
        try:
            finding = cls(**found)
        except TypeError as error:
            raise ValueError(f"not a finding: {error}") from None
        texts = (finding.step, finding.figure, finding.advice, finding.device)
        if finding.result not in get_args(Result) or not all(isinstance(t, str) for t in texts):
            raise ValueError("not a finding: a field has another type")
        if not isinstance(finding.values, dict):
            raise ValueError("not a finding: its values are no object")
        return finding


def first_line(error: object, most: int = 160) -> str:
    """Returns the first line of an error's message, or its type's name where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:most] if lines else type(error).__name__
