"""Which settings go with which algorithm. What means nothing for the one that was chosen was given by mistake."""

from typing import TYPE_CHECKING

from shoal.errors import SettingsError
from shoal.traits import ALGORITHMS, DIFFERENCES, SPARE

if TYPE_CHECKING:
    from shoal.settings import Settings


def check_fit(s: "Settings") -> None:
    """Raises SettingsError, which says what the setting is for."""
    _averages(s)
    _packing(s)
    _exchange_every(s)
    _clip_distance(s)
    _graphs_and_carriers(s)
    _single_algorithms(s)


def _averages(s: "Settings") -> None:
    if s.traits.pairs:
        return
    if s.overlap:
        pairs = ", ".join(name for name, traits in ALGORITHMS.items() if traits.pairs)
        raise SettingsError(f"overlap = {s.overlap} is for {pairs}: {s.algorithm} averages no pairs")
    if s.corrected:
        raise SettingsError(f"correction = pairwise is for ad-psgd: {s.algorithm} averages no pairs")
    if s.max_distance:
        raise SettingsError(f"max_distance = {s.max_distance:g} is for averages of pairs; {s.algorithm} has none")


def _packing(s: "Settings") -> None:
    if s.codec == "f32":
        return
    if not s.traits.packs:
        packs = ", ".join(name for name, traits in ALGORITHMS.items() if traits.packs)
        why = f"{s.algorithm} has no sound way to pack its vectors"
        raise SettingsError(f"codec = {s.codec} is for {packs}; {why}")
    if s.precision != "f32":
        why = "what float64 is wanted for would be lost in packing"
        raise SettingsError(f"codec = {s.codec} is for float32: {why}")


def _exchange_every(s: "Settings") -> None:
    if s.exchange_every == 1:
        return
    if s.algorithm not in SPARE:
        why = f"{s.algorithm} is no algorithm any more if it leaves exchanges out"
        raise SettingsError(f"exchange_every = {s.exchange_every} is for {', '.join(SPARE)}; {why}")
    if s.packed:
        why = "the differences of every round are what its packing lives on"
        raise SettingsError(f"exchange_every = {s.exchange_every} does not go with codec {s.codec}: {why}")


def _clip_distance(s: "Settings") -> None:
    if not s.clip_distance:
        return
    if not s.traits.pairs:
        raise SettingsError(f"clip_distance = {s.clip_distance:g} is for averages of pairs; {s.algorithm} has none")
    if s.codec in DIFFERENCES:
        why = "one model far off would coarsen the lattice by which all others are read; f32, f16, bf16 do"
        raise SettingsError(f"clip_distance = {s.clip_distance:g} does not go with codec {s.codec}: {why}")


def _graphs_and_carriers(s: "Settings") -> None:
    if s.lazy == "always" and not s.traits.mixes:
        raise SettingsError(f"lazy = always is for mixing matrices; {s.algorithm} has none")
    if s.mixing != "metropolis" and not s.traits.mixes:
        raise SettingsError(f"mixing = {s.mixing} has no effect: {s.algorithm} has no mixing matrix")
    if s.over not in s.traits.over:
        raise SettingsError(f"over = {s.over}: {s.algorithm} runs over {' or '.join(s.traits.over)}")
    if s.gradients is not None and s.synchronous and not s.fixed_view:
        raise SettingsError("gradients = N needs members that stay; over a coordinator give rounds, a node's own")


def _single_algorithms(s: "Settings") -> None:
    if s.staleness_aware and s.algorithm != "a-psgd":
        raise SettingsError(f"staleness_aware is for a-psgd: no gradient of {s.algorithm} is stale at a server")
    if (s.tau is not None or s.prox != "none") and not s.traits.finite_sum:
        which = f"tau = {s.tau}" if s.tau is not None else f"prox = {s.prox}"
        raise SettingsError(f"{which} is for katyusha-x and svrg, not for {s.algorithm}")
    if s.algorithm == "svrg" and s.tau != 0.5:
        raise SettingsError(f"tau = {s.tau} makes katyusha-x of svrg: give --algorithm katyusha-x")
    if s.momentum and s.traits.finite_sum:
        raise SettingsError(f"momentum = {s.momentum} has no place in {s.algorithm}, which brings its own")
    if s.algorithm == "signsgd" and s.momentum:
        raise SettingsError(f"momentum = {s.momentum} makes signum of signsgd: give --algorithm signum")
    if s.traits.votes and s.weight != "nodes":
        raise SettingsError(f"weight = {s.weight} has no effect: {s.algorithm} counts every node's sign once")
