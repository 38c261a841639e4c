"""What two nodes tell each other when they meet, and whether they may train together."""

import hashlib
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shoal.documents import differing_keys, fingerprint
from shoal.settings import PROTOCOL_VERSION, Settings
from shoal.v1 import node_pb2 as pb

KNOWN_LIMIT = 64
"""Members whose addresses a Hello passes on; one working seed is enough to find all."""
ADDRESS_LIMIT = 256
"""Characters of an address that a member passes on: it goes into logs."""


def run_document(settings: Settings) -> dict[str, Any]:
    """The run's settings; of a graph in a file its content, for two paths may hold the same graph and one path two."""
    document = settings.run_document()
    kind, _, path = settings.topology.partition(":")
    if kind == "file":
        content = Path(path).read_bytes() if Path(path).is_file() else b""
        document["topology"] = f"file sha256 {hashlib.sha256(content).hexdigest()[:16]}"
    return document


def own(
    settings: Settings, identity: pb.Identity, ready: Mapping[str, Any], known: Iterable[pb.Identity] = ()
) -> pb.Hello:
    """This node's Hello. `ready` is what the trainer said once it had loaded task and data."""
    run, task = run_document(settings), ready["task_document"]
    return pb.Hello(
        identity=identity,
        protocol=PROTOCOL_VERSION,
        shoal=settings.shoal,
        task_fingerprint=fingerprint(task),
        task_document=json.dumps(task, sort_keys=True),
        run_fingerprint=fingerprint(run),
        run_document=json.dumps(run, sort_keys=True),
        elements=ready["elements"],
        element_bytes=ready["element_bytes"],
        samples=ready["samples"],
        label_histogram=ready["histogram"],
        known=_passed_on(known),
        memory=pb.SharedMemory(**ready["memory"]) if ready.get("memory") else None,
    )


def memory(theirs: pb.Hello) -> dict[str, Any]:
    """Where a node's vectors lie, as it says."""
    said = theirs.memory
    return {"machine": said.machine[:64], "pid": said.pid, "fd": said.fd, "name": said.name[:64]}


def of_coordinator(
    shoal: str, identity: pb.Identity, adopted: pb.Hello | None, known: Iterable[pb.Identity]
) -> pb.Hello:
    """A coordinator's Hello: it has the task and run of the first node that came, and says so."""
    hello = pb.Hello()
    if adopted is not None:
        hello.CopyFrom(adopted)
    hello.identity.CopyFrom(identity)
    hello.protocol, hello.shoal, hello.samples = PROTOCOL_VERSION, shoal, 0
    hello.ClearField("label_histogram")
    hello.ClearField("known")
    hello.ClearField("memory")
    hello.known.extend(_passed_on(known))
    return hello


def _passed_on(known: Iterable[pb.Identity]) -> list[pb.Identity]:
    """Coordinators, and nodes at random where they are too many: others then tell of the rest."""
    members = list(known)
    first = [m for m in members if m.role == pb.ROLE_COORDINATOR][:KNOWN_LIMIT]
    nodes = [m for m in members if m.role != pb.ROLE_COORDINATOR]
    return first + random.sample(nodes, min(len(nodes), KNOWN_LIMIT - len(first)))


def compare(ours: pb.Hello, theirs: pb.Hello) -> str | None:
    """None when the two may train together; else what differs, key by key."""
    me, who = ours.identity.node_id, theirs.identity.node_id
    if theirs.protocol != ours.protocol:
        return f"{who} speaks protocol {theirs.protocol}, {me} speaks {ours.protocol}; update the older one"
    if theirs.shoal != ours.shoal:
        return f"{who} is of shoal {theirs.shoal[:64]!r}, {me} of {ours.shoal!r}"
    for what in ("task", "run"):
        if getattr(theirs, f"{what}_fingerprint") != getattr(ours, f"{what}_fingerprint"):
            documents = getattr(ours, f"{what}_document"), getattr(theirs, f"{what}_document")
            keys = _differences(*documents, names=(f"{me} has", f"{who} has"))
            return f"{who} has another {what} than {me}: {keys[:400]}"
    if theirs.elements != ours.elements:
        return f"{who} has vectors of {theirs.elements} elements, {me} of {ours.elements}"
    return None


def _differences(ours: str, theirs: str, names: tuple[str, str]) -> str:
    """By name, for both nodes read it."""
    try:
        other = json.loads(theirs)
    except (ValueError, RecursionError):
        other = None
    if not isinstance(other, dict):
        return "its document cannot be read"
    return (
        "; ".join(differing_keys(json.loads(ours), other, names)) or "their documents are alike, their fingerprints not"
    )
