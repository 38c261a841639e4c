"""One of two processes that average with hivemind. Run by path, by an interpreter that has hivemind and not shoal.

PYTHON averager.py ELEMENTS [ADDRESS]          told by its parent over stdin: `group`, then `swap`
"""

import sys
import time

import hivemind
import torch
from hivemind.averaging.control import AveragingStage

WITHIN_S = 60.0


def serve(elements: int, initial: str) -> None:
    """`group` answers when both have found each other, `swap` when both hold the mean."""
    torch.set_num_threads(1)
    peers = {"initial_peers": [initial]} if initial else {}
    dht = hivemind.DHT(start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"], **peers)
    if not initial:
        print(dht.get_visible_maddrs()[0], flush=True)
    averager = hivemind.DecentralizedAverager(
        [torch.randn(elements)],
        dht,
        start=True,
        prefix="bench",
        target_group_size=2,
    )
    print("ready", flush=True)
    step = None
    while command := sys.stdin.readline().strip():
        if command == "group":
            step = averager.step(wait=False, require_trigger=True, timeout=WITHIN_S)
            until = time.monotonic() + WITHIN_S
            while step.stage is not AveragingStage.AWAITING_TRIGGER and time.monotonic() < until:
                time.sleep(0.01)
        else:
            assert step is not None
            step.allow_allreduce()
            step.result(WITHIN_S)
        print("done", flush=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
