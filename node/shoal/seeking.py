"""How a node finds the coordinator of its run, and finds it again after it was lost."""

from shoal.discovery import Candidate
from shoal.greeter import Greeter
from shoal.roster import Member, Roster, State
from shoal.settings import Settings

GIVE_UP_S = 30.0
"""A node that needs a coordinator and has never met one in this time ends. One that it has met is waited for."""
AGAIN_S = 0.5
"""Between two greetings of one that answers, and to which no connection stands."""


class Seeking:
    """Call `step` often. Where the run needs no coordinator, it has nothing to do."""

    def __init__(self, settings: Settings, roster: Roster, greeter: Greeter) -> None:
        self._settings, self._roster, self._greeter = settings, roster, greeter
        self._since: float | None = None
        self._next_at = 0.0  # when it is greeted again
        self._met = False

    @property
    def found(self) -> Member | None:
        """The coordinator, while it is linked."""
        return next((m for m in self._coordinators() if m.linked and m.state is not State.GONE), None)

    @property
    def waiting(self) -> str:
        """What is waited for, for people; empty when nothing is."""
        if not self._needed or self.found is not None:
            return ""
        return f"no coordinator is {'linked' if self._met else 'found'}; {self._looked()}"

    def step(self, now: float) -> str:
        """Greets it where it may be. Returns why to give up, or nothing."""
        self._since = now if self._since is None else self._since
        if not self._needed:
            return ""
        if self.found is not None:
            self._met = True
            return ""
        if now >= self._next_at:
            self._next_at = now + AGAIN_S
            for address in self._addresses():
                self._greeter.consider(Candidate(address, "--coordinator"))
        if self._met or now - self._since < GIVE_UP_S:
            return ""
        what = f"{self._settings.algorithm} needs a coordinator, and none was found in {GIVE_UP_S:g} s"
        return f"{what}: {self._looked()}\nstart one with `shoal coordinator`, and name it with --coordinator HOST:PORT"

    def conflict(self, node_id: str) -> str | None:
        """Why that coordinator cannot be this run's: votes that are counted by two would make two models."""
        other = self.found
        if not self._needed or other is None or other.id == node_id:
            return None
        return f"the run has the coordinator {other.id} already; stop one of the two"

    @property
    def _needed(self) -> bool:
        return self._settings.over == "coordinator"

    def _coordinators(self) -> list[Member]:
        return [m for _, m in sorted(self._roster.members.items()) if m.coordinates]

    def _addresses(self) -> list[str]:
        """The one that was named, and where one was met."""
        named = [self._settings.coordinator] if self._settings.coordinator else []
        return list(dict.fromkeys([*named, *(m.identity.address for m in self._coordinators())]))

    def _looked(self) -> str:
        said = [f"{a} ({self._greeter.last_words(a) or 'no answer yet'})" for a in self._addresses()]
        return "; ".join([*(f"looked at {each}" for each in said), f"discovery by {self._settings.discovery}"])
