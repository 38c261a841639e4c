"""20,000 averages and 200 members that come and go: what a node holds stays what it was. Minutes.

The members that come and go are made of grpc calls alone: they say Hello, open their streams, and take their leave.
"""

import asyncio
import sys
from pathlib import Path

import pytest
from nodes_kit import own, shoal_in
from puppet import address_of
from strangers import Stranger, assert_sound, descriptors, processes, resident_bytes, segments, threads

from shoal.demo.fleet import NodeProcess
from shoal.v1 import node_pb2 as pb

pytestmark = [pytest.mark.live, pytest.mark.timeout(1800)]

AVERAGES, MEMBERS, WARM = 20_000, 200, 2_000
GROWTH, LOOKS = 0.10, 20
RUN = {"rounds": 10**7, "lr": 0.001, "partition": "iid", "task": "digits"}
LEAVE = pb.ControlRequest(control=pb.Control(leave=pb.Leave(reason="goes"))).SerializeToString()


async def held(node: NodeProcess) -> dict[str, int]:
    """What its two processes hold, by name, whatever they do: the least of some looks, for gRPC's pool of threads has
    one more now and then."""
    kinds = {"bytes": resident_bytes, "files": descriptors, "threads": threads, "segments": segments}
    least: dict[str, int] = {}
    for _ in range(LOOKS):
        await asyncio.sleep(1)
        for name, pid in processes(node).items():
            for kind, of in kinds.items():
                least[f"{name} {kind}"] = min(of(pid), least.get(f"{name} {kind}", sys.maxsize))
    return least


def averages(node: NodeProcess) -> int:
    """That it has finished, asked for or served."""
    return int(own(node).get("exchanges", {}).get("done", 0))


async def test_what_a_node_holds_does_not_grow_with_averages_and_members(tmp_path: Path) -> None:
    with shoal_in(tmp_path, **RUN, checkpoint_every=0, eval_every=0) as shoal:
        nodes = [await asyncio.to_thread(shoal.start, f"node-{k}", min_nodes=2, shard=f"{k}/2") for k in range(2)]
        address = await address_of(shoal, nodes[0])
        await asyncio.to_thread(shoal.until, lambda: averages(nodes[0]) >= WARM, "they have warmed up")
        await come_and_go(Stranger(shoal, "a-warm", address, RUN), 20)
        before, started = await held(nodes[0]), averages(nodes[0])
        await come_and_go(Stranger(shoal, "a-member", address, RUN), MEMBERS)
        while (done := averages(nodes[0]) - started) < AVERAGES:
            await asyncio.sleep(1)
            assert_sound(nodes[0])
        after = await held(nodes[0])
        print(f"{done} averages and {MEMBERS} members that came and went")
        for name, value in before.items():
            print(f"{name}: {value} -> {after[name]}")
        for name, value in before.items():
            if name.endswith("bytes"):
                assert after[name] <= (1 + GROWTH) * value, name
            else:
                assert after[name] <= value, name


async def come_and_go(stranger: Stranger, times: int) -> None:
    """So many members, one after the other, each under a name of its own."""
    name = stranger.me.name
    for k in range(times):
        stranger.me.node_id = stranger.me.name = f"{name}-{k}"
        await stranger.open()
        while not stranger.heard:
            await asyncio.sleep(0.01)
        await stranger.write([LEAVE], control=True)
        await stranger.close()
        stranger.heard.clear()
