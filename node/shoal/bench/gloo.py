"""What torch.distributed reaches: two processes that average their vectors over gloo, in the two ways that it has.

python -m shoal.bench.gloo ELEMENTS            two of them, told by their parent over stdin
"""

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

WITHIN = timedelta(seconds=60)
"""How long either waits for the other."""


class _Ways:
    def __init__(self, elements: int, rank: int) -> None:
        self.x, self.y = torch.randn(elements), torch.zeros(elements)
        self.peer = 1 - rank

    def swap(self) -> None:
        """Send and receive at once, then average."""
        sending = dist.isend(self.x, self.peer)
        receiving = dist.irecv(self.y, self.peer)
        assert sending is not None
        assert receiving is not None
        sending.wait()
        receiving.wait()
        self.x.add_(self.y).mul_(0.5)

    def reduce(self) -> None:
        """All-reduce, then halve."""
        dist.all_reduce(self.x)
        self.x.mul_(0.5)


def serve(elements: int, port: int) -> None:
    """One end; without a port it holds the store and says where."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    rank = 1 if port else 0
    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", port, is_master=rank == 0, wait_for_workers=False, timeout=WITHIN
    )
    if rank == 0:
        print(store.port, flush=True)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=WITHIN)
    ways = _Ways(elements, rank)
    print("ready", flush=True)
    while command := sys.stdin.readline().strip():
        {"swap": ways.swap, "reduce": ways.reduce}[command]()
        print("done", flush=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
