"""What a node tells about itself: /v1/status and a line of progress while it runs, result.json and a last line at its
end. Plain values."""

from collections.abc import Mapping
from typing import Any

from shoal.membership import Membership
from shoal.settings import Settings
from shoal.transport import Transport
from shoal.v1 import node_pb2 as pb

Facts = Mapping[str, Any]


def status(
    settings: Settings,
    membership: Membership,
    ready: Facts,
    trained: Facts,
    transport: Transport,
    now: float,
    seeking: str = "",
) -> dict[str, Any]:
    """/v1/status. `ready` and `trained` are what the trainer said at its start and last, `seeking` why the
    coordinator is not there."""
    members = with_traffic(membership.snapshot(now), transport)
    right, total = membership.held_out()
    view = membership.view
    waits = list(trained.get("waits", []))
    if membership.held_up:
        waits.append({"for": "a view", "seconds": None, "why": membership.held_up})
    if seeking:
        waits.append({"for": "a coordinator", "seconds": None, "why": seeking})
    own = own_figures(settings, membership.roster.me, ready, trained, transport)
    return {
        "node": {**own, "phase": members[0]["phase"]},
        "view": None
        if view is None
        else {
            "id": view.id,
            "number": view.number,
            "members": [m.node_id for m in view.members],
            "cut": [[edge.a, edge.b] for edge in view.cut],
        },
        "members": members,
        "waits": waits,
        "shoal": {
            "name": settings.shoal,
            "gradients": membership.total_gradients(),
            "accuracy": right / total if total else None,
        },
    }


def with_traffic(members: list[dict[str, Any]], transport: Transport) -> list[dict[str, Any]]:
    """The rows of the members with the bytes to and from each; this node's own row has 0."""
    for row in members:
        traffic = transport.traffic.get(row["id"])
        row["bytes_sent"] = traffic.sent_bytes if traffic else 0
        row["bytes_received"] = traffic.received_bytes if traffic else 0
    return members


def own_figures(
    settings: Settings, me: pb.Identity, ready: Facts, trained: Facts, transport: Transport
) -> dict[str, Any]:
    """This node's own part."""
    tally = trained.get("exchanges", {})
    done = sum(tally.get(key, 0) for key in ("active", "passive", "mixed"))
    gradients = trained.get("gradients", 0)
    right, total = trained.get("right"), trained.get("total") or 0
    seconds, timed = trained.get("seconds", {}), trained.get("timed_steps", 0)  # both of this process
    traffic = transport.traffic.values()
    return {
        "id": me.node_id,
        "incarnation": me.incarnation,
        "name": me.name,
        "address": me.address,
        "algorithm": settings.algorithm,
        "task": settings.task,
        "device": ready.get("device", ""),
        "step": trained.get("step", 0),
        "gradients": gradients,
        "loss": trained.get("loss"),
        "accuracy": right / total if total and right is not None else None,
        "samples": ready.get("samples", 0),
        "histogram": ready.get("histogram", []),
        "exchanges": {"done": done, **tally},
        "codec": settings.codec,
        "in_memory": trained.get("in_memory", []),
        "bytes_shared": trained.get("shared_bytes", 0),
        "in_doubt": trained.get("in_doubt", 0),
        "averages_per_gradient": done / gradients if gradients else None,
        "seconds": seconds,
        "seconds_a_step": {phase: spent / timed for phase, spent in seconds.items()} if timed else {},
        "distance": trained.get("distance"),
        "bytes_sent": sum(one.sent_bytes for one in traffic),
        "bytes_received": sum(one.received_bytes for one in traffic),
        "max_rate": settings.max_rate,
        "limited_s": transport.limited_s,
    }


def result(
    settings: Settings,
    membership: Membership,
    ready: Facts,
    trained: Facts,
    averaged: Facts | None,
    transport: Transport,
) -> dict[str, Any]:
    """The figures of result.json: the mean model's, if it was formed, and this node's own."""
    mean = averaged or {}
    view = membership.view
    return {
        **{key: mean.get(key) for key in ("accuracy", "loss", "right", "total", "path")},
        "members": [] if view is None else [m.node_id for m in view.members],
        "gradients": membership.roster.gradients(),
        "classes": ready.get("classes", []),
        "histogram": ready.get("histogram", []),
        "own": own_figures(settings, membership.roster.me, ready, trained, transport),
    }


def progress(membership: Membership, trained: Facts) -> str:
    """A line for people, of a node that has a view."""
    right, total = membership.held_out()
    loss = "-" if trained.get("loss") is None else f"{trained['loss']:.4f}"
    accuracy = f"{right / total:.3f}" if total else "-"
    live = len(membership.roster.live())
    return f"step {trained.get('step')}, loss {loss}, held-out accuracy of all {accuracy}, {live} others"


def of_view(view: pb.View, model_from: str) -> str:
    """A line for people: the members of a new view, and what they begin."""
    members = [m.node_id for m in view.members]
    if view.purpose != pb.PURPOSE_TRAIN:
        what = "all are done; forming the mean model"
    elif model_from:
        what = f"joining the training with the model of {model_from}"
    else:
        what = "training goes on" if view.parent else "training begins"
    cut = "".join(f"; no link between {edge.a} and {edge.b}" for edge in view.cut)
    return f"view {view.number} of {len(members)} members: {what} ({', '.join(members)}{cut})"


def goodbye(code: int, reason: str, checkpoint: str, earlier: str, *, had_view: bool) -> str:
    """The last line for people: how the run ended, unless an error has said so, and where to go on from. May be empty.

    `checkpoint` was written at the end, `earlier` before it; each is a path, or empty."""
    if checkpoint:
        where = f"checkpoint: {checkpoint} (go on with --resume)"
    elif earlier:
        where = f"the last checkpoint, from before: {earlier} (go on with --resume)"
    else:
        where = "no checkpoint was written"
    told = 0 < code < 128  # by `Process.fail`, when it happened
    if told:
        return where if had_view else ""
    return f"{reason}; {where}"
