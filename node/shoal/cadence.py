"""How often members of a shoal speak to each other, and how long the silence of one may last. Pure.

Heartbeats go to at most `AT_ONCE` members in an interval, who take turns where there are more: what a node sends does
not grow with the shoal, but the time between two heartbeats of a pair does. Suspicion follows what is observed.
"""

import math
from collections.abc import Sequence

from shoal.messages import PeerId

AT_ONCE = 16
"""Members to whom a heartbeat goes in one interval. Up to so many are told in every one."""
LOOKED_AT = 64
"""Members at all of whom a node looks in every tick. Where there are more it looks as much more seldom."""
SILENT_BEATS = 4
"""Usual intervals without a heartbeat that make a member gone, and usual deviations from it besides."""
MEAN_WEIGHT, DEVIATION_WEIGHT = 1 / 8, 1 / 4
"""Of a new interval (as for round-trip times, RFC 6298, section 2)."""
LONGEST_TIMES = 8
"""So many times what is set, or what the size of the shoal makes usual, is the most that a silence may last: who speaks
ever more seldom is gone at last."""


class Cadence:
    """The intervals between one member's heartbeats, in seconds."""

    def __init__(self) -> None:
        self.mean_s = self.deviation_s = 0.0  # nothing observed yet

    def observe(self, interval_s: float, usual_s: float) -> None:
        """Another heartbeat has come so long after the last. `usual_s`: what a shoal of this size makes usual."""
        mean_s = self.mean_s or usual_s
        self.deviation_s += DEVIATION_WEIGHT * (abs(interval_s - mean_s) - self.deviation_s)
        self.mean_s = mean_s + MEAN_WEIGHT * (interval_s - mean_s)

    def patience_s(self, least_s: float, usual_s: float) -> float:
        """Seconds of silence after which the member is gone: `least_s`, more where it speaks seldom or irregularly."""
        most_s = LONGEST_TIMES * max(least_s, usual_s)
        return min(most_s, max(least_s, SILENT_BEATS * (max(usual_s, self.mean_s) + self.deviation_s)))


class Turns:
    """Who is told next, where it cannot be all."""

    def __init__(self) -> None:
        self._last: PeerId = ""

    def take(self, members: Sequence[PeerId]) -> list[PeerId]:
        """The next of `members`, which are sorted: `AT_ONCE` of them, or all."""
        if len(members) <= AT_ONCE:
            return list(members)
        after = [member for member in members if member > self._last]
        chosen = [*after, *members][:AT_ONCE]
        self._last = chosen[-1]
        return chosen


def interval_s(heartbeat_s: float, members: int) -> float:
    """Seconds between two heartbeats to the same one of so many members."""
    return heartbeat_s * max(1, math.ceil(members / AT_ONCE))


def look_s(heartbeat_s: float, members: int) -> float:
    """Seconds between two looks at so many members, of which none has said anything new; 0: in every tick."""
    return heartbeat_s / 4 * (members // LOOKED_AT)
