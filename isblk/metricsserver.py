"""Metrics over HTTP: prometheus-client's own answer to GET, from sockets that were made before, to few clients at once and not for long.

prometheus-client's servers were the alternative; they start a thread for whoever connects, and let it wait for ever.
"""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import urlparse

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import MetricsHandler

from isblk.listening import Listener

CLIENTS = 8
"""Clients served at once; one more is turned away."""
DEADLINE = 15.0
"""Seconds for a request to come whole and its answer to be taken: daemons that do not answer cost five of them."""
PATHS = ("/", "/metrics")


class _Handler(MetricsHandler):
    """One request on one connection."""

    server_version = "isblk"
    sys_version = ""
    timeout = DEADLINE

    def do_GET(self) -> None:
        """The metrics, or 404 for another path."""
        if urlparse(self.path).path not in PATHS:
            self.send_error(HTTPStatus.NOT_FOUND, "there is only /metrics")
            return
        super().do_GET()

    def address_string(self) -> str:
        """For the log, which there is not; a unix socket has no address."""
        return "client"


class _Server(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """One listener."""

    daemon_threads = True

    def __init__(self, sock: socket.socket, handler: type[_Handler], free: threading.BoundedSemaphore) -> None:
        super().__init__("", handler)
        self.socket = sock
        self._free = free

    def fileno(self) -> int:
        """What to wait for."""
        return self.socket.fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection."""
        return self.socket.accept()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is room; room is taken."""
        return self._free.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve it, and cut it off at the deadline, however slowly its bytes trickle."""
        end = threading.Timer(DEADLINE, _cut, (request,))
        end.daemon = True
        end.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self._free.release()

    def shutdown_request(self, request: Any) -> None:
        """The end of a connection."""
        _cut(request)
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that breaks off is no news."""


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class Serving:
    """Serves a registry on every listener, in threads, for the length of a block."""

    def __init__(self, listeners: Sequence[Listener], registry: CollectorRegistry) -> None:
        handler = type("Handler", (_Handler,), {"registry": registry})
        free = threading.BoundedSemaphore(CLIENTS)
        self._servers = [_Server(listener.sock, handler, free) for listener in listeners]
        self._threads = [threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True) for server in self._servers]

    def __enter__(self) -> Serving:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
