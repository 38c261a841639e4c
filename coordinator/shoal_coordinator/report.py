"""What a coordinator tells about itself: /v1/status, and a line of progress. Plain values."""

import math
from typing import Any

from shoal.membership import Membership
from shoal.settings import Settings
from shoal.status import with_traffic
from shoal.transport import Transport
from shoal_coordinator.parameters import ParameterServer
from shoal_coordinator.server import Server
from shoal_coordinator.teller import Teller


def status(
    settings: Settings, membership: Membership, server: Server | None, transport: Transport, now: float
) -> dict[str, Any]:
    """/v1/status: what a node's has, with a part of its own in place of training."""
    members, me = with_traffic(membership.snapshot(now), transport), membership.roster.me
    traffic = transport.traffic.values()
    right, total = membership.held_out()
    serves = {} if server is None else served(server)
    return {
        "node": {
            "id": me.node_id,
            "incarnation": me.incarnation,
            "name": me.name,
            "address": me.address,
            "role": "coordinator",
            "phase": members[0]["phase"],
            "algorithm": None if server is None else server.run.algorithm,
            "step": serves.get("round", serves.get("version", 0)),
            "bytes_sent": sum(one.sent_bytes for one in traffic),
            "bytes_received": sum(one.received_bytes for one in traffic),
            "max_rate": settings.max_rate,
            "limited_s": transport.limited_s,
        },
        "coordinator": {"quorum": settings.quorum, "deadline_s": settings.deadline_s, **serves},
        "view": None,
        "members": members,
        "waits": [{"for": "a round", "seconds": None, "why": serves["waiting"]}] if serves.get("waiting") else [],
        "shoal": {
            "name": settings.shoal,
            "gradients": membership.total_gradients(),
            "accuracy": right / total if total else None,
        },
    }


def served(server: Server) -> dict[str, Any]:
    """Of rounds, or of a model."""
    match server.serves:
        case Teller() as teller:
            tally = teller.tally
            return {
                "round": teller.round,
                "rounds": dict(tally.rounds),
                "votes": dict(tally.votes),
                "agreement": None if math.isnan(tally.agreement) else tally.agreement,
                "enrolled": teller.roll.members,
                "waiting": teller.waiting,
            }
        case ParameterServer() as parameters:
            return {
                "version": parameters.version,
                "budget": parameters.budget,
                "staleness": parameters.staleness,
                "enrolled": parameters.linked,
                "waiting": parameters.waiting,
            }


def take_staleness(server: Server | None) -> list[int]:
    """Of a parameter server's gradients since the last call."""
    return server.serves.take_staleness() if server and isinstance(server.serves, ParameterServer) else []


def progress(shown: dict[str, Any]) -> str:
    """One line for the log."""
    serves = shown["coordinator"]
    here = f"{len(serves.get('enrolled', []))} workers"
    if "round" in serves:
        closed = ", ".join(f"{n} by {how}" for how, n in serves["rounds"].items())
        return f"round {serves['round']}, {here}; closed {closed}; {serves['waiting']}"
    if "version" in serves:
        return f"{serves['version']} of {serves['budget']} gradients, {here}"
    return f"waiting for nodes; {len(shown['members']) - 1} are known"
