"""A server of a few lines that replies whatever a test wants, right or wrong."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Answer = Callable[[socket.socket, int], bool | None]
"""Writes the reply to the n-th request, counted from 0; False closes the connection."""


def reply(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def replying(answer: Answer) -> Iterator[tuple[str, int]]:
    """Serve on a free port; requests of all connections are answered one at a time."""
    turn = threading.Lock()
    count = 0

    def talk(connection: socket.socket) -> None:
        nonlocal count
        waiting = b""
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                while True:
                    while b"\r\n\r\n" not in waiting:
                        data = connection.recv(4096)
                        if not data:
                            return
                        waiting += data
                    waiting = waiting.split(b"\r\n\r\n", 1)[1]
                    with turn:
                        number, count = count, count + 1
                        if answer(connection, number) is False:
                            return
            except ConnectionError:
                return  # the client has had enough

    def accept() -> None:
        while True:
            try:
                opened, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=talk, args=(opened,)))
            threads[-1].start()

    threads: list[threading.Thread] = []
    listener = socket.create_server(("127.0.0.1", 0))
    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield listener.getsockname()[:2]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for thread in threads:
            thread.join()
