"""That the receiver is not what is measured: how many requests per second it can answer.

The client is as simple: a request on each of its connections, then an answer from each.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from bench.ground import EVENT_DATA, Ground
from bench.receiver import ANSWER

CONNECTIONS = 100
REQUEST = (
    b"POST /hook HTTP/1.1\r\nHost: 127.0.0.1\r\nwebhook-id: evt_0\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
) % (len(EVENT_DATA), EVENT_DATA.encode())


def measure(ground: Ground) -> dict[str, Any]:
    """Requests per second, from the first sent to the last answered."""
    port = int(ground.receiver.urls[0].rpartition(":")[2].partition("/")[0])
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(CONNECTIONS)]
    requests = ground.scale.tasks // CONNECTIONS * CONNECTIONS
    ground.receiver.reset()
    began = time.monotonic()
    for _ in range(requests // CONNECTIONS):
        for connection in connections:
            connection.sendall(REQUEST)
        for connection in connections:
            connection.recv(len(ANSWER), socket.MSG_WAITALL)
    took = time.monotonic() - began
    for connection in connections:
        connection.close()
    return {"receiver_alone_per_s": requests / took}
