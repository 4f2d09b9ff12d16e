"""Packaging: setup.cfg says everything but this: with ISBLK_COMPILED=1 the modules of the data path are compiled, from the same source.

mypyc takes them as they are, types and all (no second source, no fallback while importing); everything else stays Python. It needs a C
compiler and Python's headers, so it is asked for, never guessed: `ISBLK_COMPILED=1 pip install .`
"""

import os

from setuptools import setup

COMPILED = [
    *(f"isblk/iscsi/{name}.py" for name in ("dataout", "exchanges", "framer", "pdu", "serial", "session", "task", "wire")),
    *(f"isblk/block/{name}.py" for name in ("align", "choose", "command", "flush", "gate", "journal", "latency", "lun")),
    *(f"isblk/block/{name}.py" for name in ("multipath", "path", "request", "series")),
    *(f"isblk/link/{name}.py" for name in ("busypoll", "connection", "plane", "sweeper")),
    *(f"isblk/export/{name}.py" for name in ("fusekernel", "fusememory", "fuseranges", "fusesession", "fusewire")),
    *(f"isblk/export/{name}.py" for name in ("nbdclient", "nbdmemory", "nbdsession", "nbdwire", "waiting")),
    "isblk/perf.py",
]
"""The hot path, and whoever subclasses something of it: Python classes cannot inherit from compiled ones."""

if os.environ.get("ISBLK_COMPILED") == "1":
    try:
        from mypyc.build import mypycify
    except ImportError:  # the first time, when it is only asked what the build needs
        ext_modules = []
    else:
        ext_modules = mypycify(COMPILED, opt_level="3", debug_level="0", group_name="isblk")
    setup(ext_modules=ext_modules, setup_requires=["crc32c", "mypy", "trio"])
else:
    setup()
