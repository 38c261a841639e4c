"""The run that a coordinator serves: that of the first node that says Hello, and from then on no other."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from shoal import hello
from shoal.documents import fingerprint
from shoal.errors import Mismatch, SettingsError
from shoal.settings import Settings
from shoal.v1 import node_pb2 as pb
from shoal.wire import ELEMENT_BYTES
from shoal_coordinator import rounds
from shoal_coordinator.rounds import Terms

VECTOR_LIMIT = 8 << 30
"""Bytes of a model's vector; a coordinator holds one of each worker at a time."""
AMONG_NODES = ("topology", "mixing", "lazy")
"""Settings of a run that mean nothing to a coordinator, and may name a file of the nodes."""
REMEDY = "to coordinate another run, start the coordinator with another --state-dir"


def adopt(theirs: pb.Hello, terms: Terms, *, shoal: str) -> tuple[pb.Hello, Settings]:
    """(what the coordinator's own Hello will say, the run's settings). Raises Mismatch, saying what is wrong."""
    who = theirs.identity.node_id
    ours = hello.of_coordinator(shoal, pb.Identity(node_id="the coordinator"), theirs, [])
    if (reason := hello.compare(ours, theirs)) is not None:
        raise Mismatch(reason)
    run = _document(theirs.run_document, theirs.run_fingerprint, f"the run of {who}")
    _document(theirs.task_document, theirs.task_fingerprint, f"the task of {who}")
    settings = settings_of(run)
    element_bytes = ELEMENT_BYTES[settings.precision]
    if not 0 < theirs.elements * element_bytes <= VECTOR_LIMIT or theirs.element_bytes != element_bytes:
        got = f"{theirs.elements} elements of {theirs.element_bytes} bytes"
        most = f"{element_bytes} bytes each and {VECTOR_LIMIT >> 30} GiB in all"
        raise Mismatch(f"{who} has vectors of {got}, expected at most {most}")
    fits, why = rounds.fits(terms, settings)
    if not fits:
        raise Mismatch(why)
    return ours, settings


def settings_of(run: Mapping[str, Any]) -> Settings:
    """What a run's document says. Raises Mismatch."""
    known = {f.name for f in dataclasses.fields(Settings) if f.metadata["scope"] == "run"} - set(AMONG_NODES)
    try:
        return Settings(**{key: value for key, value in run.items() if key in known})
    except SettingsError as error:
        raise Mismatch(f"the run's settings cannot be: {error}") from None


def to_disk(adopted: pb.Hello) -> dict[str, Any]:
    """As plain values."""
    keys = ("task_document", "task_fingerprint", "run_document", "run_fingerprint", "elements", "element_bytes")
    return {key: getattr(adopted, key) for key in keys}


def from_disk(document: Mapping[str, Any]) -> tuple[pb.Hello, Settings]:
    """What `to_disk` gave, and the run's settings."""
    adopted = pb.Hello(**document)
    return adopted, settings_of(json.loads(adopted.run_document))


def _document(text: str, claimed: str, what: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or fingerprint(document) != claimed:
        raise Mismatch(f"{what} cannot be read, or has another fingerprint than it says")
    return document
