"""The steps, one subject a module: functions from `Options` to findings.

They run in the child processes of `pipeline.doctor.process` and import what they need when they
run: on a machine without Ray or PyAV, the steps that need neither still work.
"""
