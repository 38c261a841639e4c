"""Mutated frames against a live node that trains: what both sizes of the test have in common."""

import asyncio
import random
import time
from pathlib import Path

from mangler import Mangler, recorded
from nodes_kit import own, shoal_in
from puppet import address_of
from strangers import Stranger, a_corpus_of_controls, assert_sound, mangle, names, sizes

RUN = {"rounds": 10**7, "lr": 0.001, "partition": "iid"}
STRANGERS = 4
GROWTH = 0.10
"""Of resident memory, at most."""


async def bear(folder: Path, frames: int, seed: int) -> None:
    """A node that trains at a pace of 100 steps a second takes in so many bad frames. Raises AssertionError."""
    messages = await asyncio.to_thread(recorded, "quadratic")
    with shoal_in(folder, **RUN, emulate_compute_s=0.01, checkpoint_every=0, eval_every=0) as shoal:
        node = shoal.start("node")
        address = await address_of(shoal, node)
        rng = random.Random(seed)
        strangers = [Stranger(shoal, name, address, RUN) for name in names(STRANGERS, rng)]
        try:
            controls = await a_corpus_of_controls(strangers[0])
            await asyncio.to_thread(shoal.until_step, 50, node)
            manglers = [Mangler(messages, controls, rng.randrange(2**32)) for _ in strangers]
            pairs = list(zip(strangers, manglers, strict=True))
            warm = max(200, frames // 50)  # caches of gRPC, of torch and of the allocator fill once
            await asyncio.gather(*(mangle(stranger, mangler, warm // STRANGERS) for stranger, mangler in pairs))
            before, stepped, began = sizes(node), own(node)["step"], time.monotonic()
            sent = sum(await asyncio.gather(*(mangle(s, m, frames // STRANGERS) for s, m in pairs)))
            took = time.monotonic() - began
            assert_sound(node)
            after, now = sizes(node), own(node)["step"]
            grown = {name: after[name] / before[name] - 1 for name in before}
            connections = sum(stranger.connections for stranger in strangers)
            print(f"seed {seed}: {sent} frames over {connections} connections in {took:.0f} s, {now - stepped} steps")
            print(f"resident {before}, grown by {', '.join(f'{name} {part:.1%}' for name, part in grown.items())}")
            for stranger in strangers:
                await stranger.close()
            await asyncio.to_thread(shoal.until_step, now + 20, node)
            assert now > stepped, "it has not trained meanwhile"
            assert max(grown.values()) <= GROWTH
            assert_sound(node)
        finally:
            for stranger in strangers:
                await stranger.close()
