"""What must hold of four nodes of a synchronous run, whatever their links and lives do."""

import itertools
import random

from views_net import Weather, storm

NAMES = "abcd"


def all_step_in_one_view_at_last(sky: Weather, min_nodes: int, *, replicas: bool) -> bool:
    """Whether, once the weather has cleared, all come to share a view, stay in it, and make rounds."""
    net = storm(NAMES, min_nodes, sky, synchronous=True, replicas=replicas)
    together = net.run(60, until=lambda: net.now > 14 and net.in_view(NAMES))
    net.run(5)
    rounds = [node.round for node in net.nodes.values()]
    stays = net.in_view(NAMES)
    net.run(1)
    step = all(node.round > before for node, before in zip(net.nodes.values(), rounds, strict=True))
    return together and stays and step


def replicas_stay_equal(sky: Weather, min_nodes: int, deaths: list[tuple[float, int]]) -> bool:
    """Whether, at any moment, members that share a view are at most one round apart, and hold the same model in the
    same round; and all share a view at last. `deaths`: when, and who; each starts again at once."""
    net = storm(NAMES, min_nodes, sky, synchronous=True, replicas=True)
    incarnations = itertools.count(2)

    def start_again(name: str) -> None:
        net.kill(name)
        net.add(name, incarnation=next(incarnations))
        net.link(name, NAMES)

    for when, k in deaths:
        net.at(when, lambda name=NAMES[k]: start_again(name))  # type: ignore[misc]

    def broken() -> bool:
        at_work = [n for n in net.nodes.values() if n.running and n.view and not (n.paused or n.lacks_model)]
        pairs = [(a, b) for a, b in itertools.combinations(at_work, 2) if a.view.id == b.view.id]  # type: ignore[union-attr]
        apart = any(abs(a.round - b.round) > 1 for a, b in pairs)
        return apart or any(a.model != b.model for a, b in pairs if a.round == b.round)

    return not net.run(40, until=broken) and net.run(20, until=lambda: net.in_view(NAMES))


def some_weather(seed: int) -> Weather:
    """Other than hypothesis' by its numbers alone."""
    rng = random.Random(seed)
    loss, delay_s = rng.choice([0.0, 0.1, 0.3, 0.5]), rng.choice([0.001, 0.05, 0.3, 1.0])

    def flap() -> tuple[float, int, int, float]:
        return rng.uniform(0, 10), rng.randrange(5), rng.randrange(5), rng.uniform(0.05, 4)

    return Weather(seed, loss, delay_s, tuple(flap() for _ in range(rng.randrange(9))))


def some_deaths(seed: int) -> list[tuple[float, int]]:
    """Up to three."""
    rng = random.Random(f"deaths {seed}")
    return [(rng.uniform(1, 12), rng.randrange(4)) for _ in range(rng.randrange(4))]
