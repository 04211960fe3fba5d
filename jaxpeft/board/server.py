"""Serves the board until it is told to end."""

import secrets
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from jaxpeft import console
from jaxpeft.board.application import application
from jaxpeft.board.catalog import Catalog
from jaxpeft.board.jobs import EVERY, Queue
from jaxpeft.errors import InputError

CONNECTIONS = 200  # at a time
EVERYWHERE = ("0.0.0.0", "::")


def serve(
    folders: Sequence[Path], host: str, port: int, places: int, token: str = ""
) -> None:
    """Serves the board.

    Args:
        folders: in which the runs are.
        host: the address to listen at.
        port: the port; 0: any that is free.
        places: how many commands that it starts run at a time.
        token: what every request must bring; "": one that nobody can guess.

    Raises:
        InputError: one cannot listen there.
    """
    token = token or secrets.token_urlsafe(24)
    with listening(host, port) as listener:
        port = listener.getsockname()[1]
        catalog = Catalog(list(folders))
        tops = catalog.folders.tops
        queue = Queue(tops[0], places, tops=tops)
        server = uvicorn.Server(
            uvicorn.Config(
                application(
                    *(catalog, queue, token, host, port),
                    is_ending=lambda: server.should_exit,
                ),
                log_config=None,
                access_log=False,
                lifespan="off",
                http="h11",
                ws="none",
                loop="asyncio",
                server_header=False,
                limit_concurrency=CONNECTIONS,
                timeout_graceful_shutdown=2,
            )
        )
        name = socket.gethostname() if host in EVERYWHERE else host
        name = f"[{name}]" if ":" in name else name
        console.say(f"open http://{name}:{port}/?token={token}")
        threading.Thread(target=_tend, args=[queue], name="queue", daemon=True).start()
        server.run(sockets=[listener])


def _tend(queue: Queue) -> None:
    """Keeps the queue going, as long as the board lives."""
    while True:
        try:
            queue.tend()
            queue.fault = ""
        except Exception as error:  # noqa: BLE001
            # Whatever stands there: the queue goes on after it.
            fault = f"{queue.folder}: nothing is started ({error})"
            if fault != queue.fault:
                console.remark(fault)
            queue.fault = fault
        time.sleep(EVERY)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: the address.
        port: the port; 0: any that is free.

    Raises:
        InputError: that is not possible there.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise InputError(
            f"cannot listen at {host} port {port} ({error.strerror or error}); give "
            "another --port, or 0 for any that is free"
        ) from error
    return listener
