"""The embedded target as a process: configuration and questions as lines on standard input, answers as JSON on standard output."""

from __future__ import annotations

import json
import logging
import socket
import sys
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from isblk.target.server import Server, running
from support.targets import rebuild


class Endings(logging.Filter):
    """Keeps why each connection ended, as the target's log has it."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        what, _, reason = record.getMessage().partition(": ")
        if what == "connection closed":
            self.reasons.append(reason)
        return record.levelno > logging.INFO


ENDINGS = Endings()


def answer(server: Server, question: str) -> object:
    """Do what a line asks (support/targets.py has the list); what to print for it."""
    verb, *numbers = question.split()
    if verb == "crash":
        server.crash_cache()
    elif verb == "drop":
        server.drop_all()
    elif verb == "hold":
        server.node.hold = lambda lun, cdb: cdb[0] in (0x2A, 0x8A)  # WRITE (10) and (16)
    elif verb == "release":
        server.node.hold = None
        server.release()
    elif verb == "held":
        return len(server.node.held)
    elif verb == "resize":
        server.node.units.units[int(numbers[0])].resize(int(numbers[1]))
    elif verb == "close":
        close(server, int(numbers[0]))
    elif verb == "endings":
        return ENDINGS.reasons
    elif verb != "sessions":
        raise AssertionError(f"no such question: {question}")
    return server.sessions


def close(server: Server, portal: int) -> None:
    """Take a portal away for good: nobody listens there, and what was connected there is cut."""
    logging.getLogger("isblk.target.server").disabled = True  # It would say four times a second that it cannot accept.
    server._listeners[portal].shutdown(socket.SHUT_RD)
    for connection in list(server.connections):
        if connection._login._portal is server.config.portals[portal]:
            connection.drop("its portal is closed")


async def main() -> None:
    """Serve until standard input ends: a test that dies takes its target with it."""
    log = logging.getLogger("isblk.target.server")
    log.setLevel(logging.INFO)
    log.addFilter(ENDINGS)
    config = rebuild(json.loads(await trio.to_thread.run_sync(sys.stdin.readline)))
    async with running(config) as server:
        print(json.dumps({"name": server.name, "portals": server.portals}), flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            print(json.dumps(answer(server, line.strip())), flush=True)


if __name__ == "__main__":
    trio.run(main)
