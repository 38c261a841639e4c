"""Replicas that must be equal: all-reduce, votes and Katyusha X keep the same x on every member.

A bit that flips in one of them would never heal by itself. So the members compare a hash of x now and then, and
whoever differs from most takes their model.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shoal.collective import Collective, check
from shoal.messages import PeerId, Tag

HASH_BYTES = 8


def fingerprint(*held: Tensor) -> Tensor:
    """(8,) uint8: a hash of the bits of all, in order."""
    hashed = hashlib.sha256()
    for x in held:
        hashed.update(x.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    digest = hashed.digest()
    return torch.frombuffer(bytearray(digest[:HASH_BYTES]), dtype=torch.uint8)


def right_one(held: Mapping[PeerId, Tensor]) -> tuple[PeerId, list[PeerId]]:
    """(whose model counts, who differs from it): what most hold; of two held equally often, that of the lowest id."""
    words = {member: bytes(held[member].tolist()) for member in sorted(held)}
    most, _ = Counter(words.values()).most_common(1)[0]
    return next(m for m in words if words[m] == most), [m for m in words if words[m] != most]


async def agreed(together: Collective, own: Sequence[Tensor], round: int) -> tuple[PeerId, list[PeerId]]:
    """Compare x, and what else must be equal, with the other members', and put all of it right in place.

    Returns (whose model counted, who differed). Each tensor is a post of its own: no post is longer than a model.
    """
    me, others = together.me, [member for member in together.members if member != together.me]
    hashes = Tag(together.view, round, "hash")
    models = [Tag(together.view, round, "model", step) for step in range(len(own))]
    held = {me: fingerprint(*own)}
    for member in others:
        together.post.post(member, hashes, held[me])
    for member in others:
        held[member] = await together.collect(member, hashes)
        check(held[member], HASH_BYTES, torch.uint8, member, "hash of x")
    source, wrong = right_one(held)
    if source == me:
        for member in wrong:
            for tag, x in zip(models, own, strict=True):
                together.post.post(member, tag, x.clone())
    if me in wrong:
        for tag, x in zip(models, own, strict=True):
            model = await together.collect(source, tag)
            check(model, x.numel(), x.dtype, source, "model")
            x.copy_(model)
    return source, wrong
