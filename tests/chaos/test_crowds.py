"""What honest nodes lose to a crowd that opens and says nothing: less than a tenth of their steps. Two minutes."""

import asyncio
import contextlib
import statistics
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from nodes_kit import own, shoal_in
from puppet import address_of
from strangers import Stranger, assert_sound

from shoal.demo.fleet import NodeProcess
from shoal.transport.channels import CONTROL, Ends
from shoal.transport.frames import frames
from shoal.v1 import node_pb2 as pb

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

IDLE, IDLE_CALLERS, HALVES, SILENT = 500, 50, 20, 8
WINDOW_S, WINDOWS = 8.0, 4
LEAST = 0.9
RUN = {"rounds": 10**6, "lr": 0.1, "partition": "iid", "task": "digits"}


async def steps_a_second(node: NodeProcess) -> float:
    """By its own count, over a window; the count is told twice a second."""
    before, began = own(node)["step"], asyncio.get_running_loop().time()
    await asyncio.sleep(WINDOW_S)
    return float(own(node)["step"] - before) / (asyncio.get_running_loop().time() - began)


async def hung_up(writer: asyncio.StreamWriter) -> None:
    """At once."""
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def crowd(address: str, strangers: list[Stranger]) -> AsyncIterator[None]:
    """500 connections on which nothing is said, 50 without a call, 20 Control streams without their Exchange, and
    eight peers that announce a vector, send none of it, and read nothing."""
    host, _, port = address.rpartition(":")
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(IDLE):
            _, writer = await asyncio.open_connection(host, int(port))
            stack.push_async_callback(hung_up, writer)
        options = [("grpc.use_local_subchannel_pool", 1)]
        for _ in range(IDLE_CALLERS):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options))
            await channel.channel_ready()
        elements = strangers[0].elements
        shape = pb.Vector(elements=elements, dtype=pb.DTYPE_F32, bytes=4 * elements)
        announced = pb.Header(kind=pb.MESSAGE_KIND_ACCEPT, seq=1, vector=shape).SerializeToString()
        for stranger in strangers:
            stack.push_async_callback(stranger.close)
            await stranger.open(reads=False)
            await stranger.write([next(frames(announced, None))])
        node = await strangers[0].greet()
        assert node is not None
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options))
        for k in range(HALVES):
            ends = Ends(strangers[k % SILENT].me.node_id, 1, node.node_id, node.incarnation, 1000 + k)
            channel.stream_stream(CONTROL)(metadata=ends.metadata())
        yield


async def test_honest_nodes_keep_nine_tenths_of_their_speed(tmp_path: Path) -> None:
    with shoal_in(tmp_path, **RUN, emulate_compute_s=0.02, checkpoint_every=0, eval_every=0) as shoal:
        nodes = [await asyncio.to_thread(shoal.start, f"node-{k}", min_nodes=2, shard=f"{k}/2") for k in range(2)]
        address = await address_of(shoal, nodes[0])
        await asyncio.to_thread(shoal.until_step, 100, *nodes)
        ratios = []
        for window in range(WINDOWS):
            quiet = await steps_a_second(nodes[0])
            strangers = [Stranger(shoal, f"a-{window}-{k}", address, RUN) for k in range(SILENT)]
            async with crowd(address, strangers):
                ratios.append(await steps_a_second(nodes[0]) / quiet)
            print(f"{quiet:.1f} steps/s in quiet, {ratios[-1]:.3f} of that in the crowd", flush=True)
        for node in nodes:
            assert_sound(node)
        assert statistics.median(ratios) >= LEAST
