"""Documents that members compare: plain values under names, and a fingerprint of them."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def fingerprint(document: Mapping[str, Any]) -> str:
    """16 hex digits of a document's canonical JSON; equal documents have equal ones."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def differing_keys(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], names: tuple[str, str] = ("ours", "theirs")
) -> list[str]:
    """Keys at which two documents differ, each as `key: ours X, theirs Y`, sorted; `names` stand for ours, theirs."""
    absent = object()
    found = []
    for key in sorted({*ours, *theirs}):
        mine, other = ours.get(key, absent), theirs.get(key, absent)
        if mine != other:
            left, right = ("absent" if v is absent else json.dumps(v) for v in (mine, other))
            found.append(f"{key}: {names[0]} {left}, {names[1]} {right}")
    return found
