"""Checks a machine, or every node of a cluster, before a run is left alone on it.

Each step runs in a process of its own with a deadline, so that a crash or a hang is a finding of
that step and nothing else. Start reading at `machine.py` (the steps of one machine) and
`cluster.py` (one task a node); `steps/` has the steps, `quick.py` the half that a run does itself.
"""
