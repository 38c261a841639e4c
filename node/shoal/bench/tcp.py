"""What there is to reach: two processes swap their vectors over a plain TCP socket and average them, unchecked.

python -m shoal.bench.tcp ELEMENTS            two of them, told by their parent over stdin
"""

import socket
import sys
import threading

import numpy as np
import numpy.typing as npt

from shoal.bench.told import Pair


class TcpPair(Pair):
    """Two processes with a connection between them, kept over all swaps."""

    def __init__(self, elements: int) -> None:
        super().__init__([sys.executable, "-m", "shoal.bench.tcp", str(elements)])


def serve(elements: int, port: int) -> None:
    """One end; without a port it listens and says where."""
    x, y = np.random.default_rng(port).standard_normal(elements, np.float32), np.empty(elements, np.float32)
    y.fill(0)
    if port:
        connection = socket.create_connection(("127.0.0.1", port))
    else:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            print(listening.getsockname()[1], flush=True)
            connection, _ = listening.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print("ready", flush=True)
    while sys.stdin.readline():
        sending = threading.Thread(target=connection.sendall, args=(x.view(np.uint8).data,))
        sending.start()
        _receive(connection, y)
        sending.join()
        np.add(x, y, out=x)
        np.multiply(x, np.float32(0.5), out=x)
        print("done", flush=True)


def _receive(connection: socket.socket, into: npt.NDArray[np.float32]) -> None:
    rest = into.view(np.uint8).data
    while rest:
        rest = rest[connection.recv_into(rest) :]


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
