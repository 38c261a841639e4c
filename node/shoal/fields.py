"""One field of the settings table: its sentence, its range, and how a given value is read and checked."""

import dataclasses
import operator
import re
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal

from shoal.errors import SettingsError

Scope = Literal["run", "node"]

BOUNDS = (
    ("low", "at least", operator.ge),
    ("above", "above", operator.gt),
    ("high", "at most", operator.le),
    ("below", "below", operator.lt),
)


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT or [IPv6]:PORT. Raises ValueError, saying what was expected."""
    match = re.fullmatch(r"(?:\[([0-9A-Za-z:.%]+)\]|([^\s:/\[\]]+)):(\d{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise ValueError("HOST:PORT, the port from 0 to 65535")
    return match[1] or match[2], int(match[3])


def parse_shard(text: str) -> tuple[int, int]:
    """(K, N) of K/N, 0 <= K < N. Raises ValueError, saying what was expected."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError("K/N, K from 0 and below N")
    return int(match[1]), int(match[2])


def parse_name(text: str) -> tuple[str, int | None]:
    """(host, port) of HOST:PORT, (name, None) of _SERVICE._tcp.DOMAIN. Raises ValueError, saying what was expected."""
    if re.fullmatch(r"_[A-Za-z0-9-]{1,62}\._tcp(\.[A-Za-z0-9-]{1,63}){1,10}\.?", text):
        return text, None
    try:
        host, port = parse_address(text)
    except ValueError as expected:
        raise ValueError(f"{expected}, or _SERVICE._tcp.DOMAIN") from None
    if port == 0:
        raise ValueError("HOST:PORT with the port that the nodes listen on, or _SERVICE._tcp.DOMAIN")
    return host, port


AUTO = "auto/"


def parse_share(text: str) -> None:
    """K/N, or auto/N. Raises ValueError, saying what was expected."""
    try:
        parse_shard(text if not text.startswith(AUTO) else f"0/{text.removeprefix(AUTO)}")
    except ValueError as expected:
        raise ValueError(f"{expected}; or auto/N, K by the number in the host's name") from None


RATE_UNITS = {"kbit": 125.0, "Mbit": 125e3, "Gbit": 125e6, "kB": 1e3, "MB": 1e6, "GB": 1e9}
"""Bytes a second of one."""
LEAST_RATE = 8e3
"""Bytes a second, 64 kbit: below it the heartbeats of a few peers would leave nothing for models."""


def parse_rate(text: str) -> float:
    """Bytes a second of 10Mbit, 1.5MB, 10Mbit/s, ...; 0, which is no limit, of 0 and of nothing. Raises ValueError,
    saying what was expected."""
    if text in ("", "0"):
        return 0.0
    match = re.fullmatch(rf"(\d{{1,9}}(?:\.\d{{1,9}})?) ?({'|'.join(RATE_UNITS)})(?:/s)?", text)
    rate = float(match[1]) * RATE_UNITS[match[2]] if match else 0.0
    if rate < LEAST_RATE:
        units = ", ".join(RATE_UNITS)
        raise ValueError(f"a number and a unit ({units}; a second), such as 10Mbit, at least 64kbit; or 0 for no limit")
    return rate


def matches(pattern: str, words: str) -> Callable[[str], object]:
    """A form: the whole string matches `pattern`; `words` say so to people."""

    def form(text: str) -> None:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(words)

    return form


def setting(
    default: Any,
    help: str,
    scope: Scope,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: Iterable[str] = (),
    form: Callable[[str], object] | None = None,
) -> Any:
    """A field with its sentence and its range: low <= value <= high, above < value < below.

    `form` raises ValueError, with the words for what was expected, on a string that it cannot read.
    """
    limits = {"low": low, "above": above, "high": high, "below": below}
    metadata = {"help": help, "scope": scope, "choices": tuple(choices), "form": form, **limits}
    return dataclasses.field(default=default, metadata=metadata)


def field_type(f: dataclasses.Field[Any]) -> type:
    """int, float, bool, str or tuple: the type behind an optional one."""
    hint: Any = f.type
    if isinstance(hint, types.UnionType):
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    origin = typing.get_origin(hint) or hint
    assert isinstance(origin, type)
    return origin


def checked(f: dataclasses.Field[Any], value: Any) -> Any:
    """`value` as the field's type and inside its range, or SettingsError. Numbers may come as strings."""
    if value is None and f.default is None:
        return None
    kind = field_type(f)
    value = _converted(f.name, kind, value)
    choices = f.metadata["choices"]
    if choices and value not in choices:
        raise SettingsError(f"unknown {f.name} {value!r}; known: {', '.join(choices)}")
    if f.metadata["form"] is not None and value != f.default:
        _check_form(f, value)
    if kind in (int, float):
        _check_range(f, value)
    return value


def _check_range(f: dataclasses.Field[Any], value: float) -> None:
    for key, words, holds in BOUNDS:
        bound = f.metadata[key]
        if bound is not None and not holds(value, bound):
            raise SettingsError(f"{f.name} = {value} must be {words} {bound}")


def _check_form(f: dataclasses.Field[Any], value: str | tuple[str, ...]) -> None:
    for text in (value,) if isinstance(value, str) else value:
        try:
            f.metadata["form"](text)
        except ValueError as expected:
            raise SettingsError(f"{f.name} = {text!r} must be {expected}") from None


def _converted(name: str, kind: type, value: Any) -> Any:
    if kind is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple)) or not all(isinstance(p, str) for p in parts):
            raise SettingsError(f"{name} = {value!r} must be a list of strings")
        return tuple(p.strip() for p in parts if p.strip())
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        if isinstance(value, bool):
            return value
    elif isinstance(value, bool):
        pass  # True is an int in Python, but no number was meant
    elif kind is str and isinstance(value, str):
        return value
    elif kind in (int, float) and isinstance(value, (int, float, str)):
        try:
            number = kind(value)
        except (ValueError, OverflowError):  # int("x"), int(inf)
            number = None
        if number is not None and number == number and (isinstance(value, str) or number == value):
            return number
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}[kind]
    raise SettingsError(f"{name} = {value!r} must be {wanted}")
