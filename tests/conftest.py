"""What the end-to-end tests share: real commands, real photos, outputs, a real S3 server."""

# In the order in which they import each other: what is imported before it is named here keeps
# plain assertions.
pytest_plugins = [
    "tests.support.commands",
    "tests.support.photos",
    "tests.support.clips",
    "tests.support.broken",
    "tests.support.liars",
    "tests.support.bombs",
    "tests.support.outputs",
    "tests.support.s3",
    "tests.support.crowd",
    "tests.support.plans",
    "tests.support.encoding",
    "tests.support.processes",
    "tests.support.pack_device",
    "tests.support.s3_here",
    "tests.support.hub",
]
