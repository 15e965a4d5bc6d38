"""Stands for Ray's agents of a machine, which a local run has no use for.

They are for a dashboard, for metrics, and to make environments for workers. Ray's own start takes
until they listen, most of a second. This one's does not: run by the raylet with an agent's command
line, it says that it listens nowhere, and lives as long as the raylet does.
"""

import sys
from pathlib import Path

_PORTS = {
    "agent.py": ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port"),
    "main.py": ("runtime_env_agent_port",),
}


def main(script: str, *options: str) -> None:
    """Tells the ports of the agent that is `script`, and waits for the raylet's end."""
    given = dict(option.split("=", 1) for option in options if "=" in option)
    for name in _PORTS[Path(script).name]:
        place = Path(given["--session-dir"], f"{name}_{given['--node-id']}")
        whole = place.with_suffix(".whole")
        whole.write_text("-1")
        whole.rename(place)
    sys.stdin.read()  # A pipe of the raylet's, which says nothing and closes with it.


if __name__ == "__main__":
    main(*sys.argv[1:])
