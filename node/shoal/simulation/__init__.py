"""Many workers in one process and in virtual time: the same algorithms, settlement and rounds as over gRPC.

Only what surrounds them is made up: how long a gradient takes, how long a message travels, when links break and workers
die. The same scenario gives the same trace, digest and models.
"""

from shoal.simulation.population import evaluator, population
from shoal.simulation.result import Point, Result
from shoal.simulation.scenario import Crash, Cut, Scenario
from shoal.simulation.world import COORDINATOR, World, simulate

__all__ = [
    "COORDINATOR",
    "Crash",
    "Cut",
    "Point",
    "Result",
    "Scenario",
    "World",
    "evaluator",
    "population",
    "simulate",
]
