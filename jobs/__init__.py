"""The command lines, one file each: parse, connect, run, exit code."""
