"""The embedded target as a process: configuration and questions as lines on standard input, answers as JSON on standard output."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from isblk.target.server import Server, running
from support.targets import rebuild


def answer(server: Server, question: str) -> object:
    """Do what a line asks; what to print for it."""
    if question == "crash":
        server.crash_cache()
    elif question == "drop":
        server.drop_all()
    elif question != "sessions":
        raise AssertionError(f"no such question: {question}")
    return server.sessions


async def main() -> None:
    """Serve until standard input ends: a test that dies takes its target with it."""
    config = rebuild(json.loads(await trio.to_thread.run_sync(sys.stdin.readline)))
    async with running(config) as server:
        print(json.dumps({"name": server.name, "portals": server.portals}), flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            print(json.dumps(answer(server, line.strip())), flush=True)


if __name__ == "__main__":
    trio.run(main)
