"""Settings from four sources: flags, then SHOAL_* of the environment, then shoal.toml, then the defaults.

The options are made from the table `shoal.settings.Settings`; there is no other list of settings.
"""

import dataclasses
import difflib
import inspect
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from shoal.errors import SettingsError
from shoal.fields import checked, field_type
from shoal.settings import EXCLUSIVE, Settings, field

R = TypeVar("R")

TOML = Path("shoal.toml")
"""Read from the current folder when no --config is given; it need not exist."""
PREFIX = "SHOAL_"
PANELS = {"run": "The run: the same on every node", "node": "This node"}
METAVARS = {int: "N", float: "X", str: "TEXT", tuple: "A,B,..."}

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help=f"Settings file. Default: ./{TOML}, if there is one."),
]

Given = dict[str, tuple[Any, str]]
"""Name of a setting -> (value as it was given, where it was given)."""


def resolve(
    flags: Mapping[str, Any], environ: Mapping[str, str], toml_path: Path | None = None
) -> tuple[Settings, dict[str, str]]:
    """The settings, and for each where it came from: `flag --lr`, `environment SHOAL_LR`, a file, `default`.

    `flags` maps names to values, None for those not given. `toml_path` None means shoal.toml of the current
    folder, if it exists. Raises SettingsError naming the source and the setting.
    """
    given: Given = {}
    for source in (_from_toml(toml_path), _from_environment(environ), _from_flags(flags)):
        if source.keys() & set(EXCLUSIVE):  # `--gradients` overrules `rounds` of a file, which no flag could unset
            given = {name: entry for name, entry in given.items() if name not in EXCLUSIVE}
        given |= source
    values = {name: _checked(name, value, origin) for name, (value, origin) in given.items()}
    fields = dataclasses.fields(Settings)
    origins = {f.name: given[f.name][1] if f.name in given else "default" for f in fields}
    return Settings(**values), origins


def with_settings(
    *, only: Iterable[str] | None = None, without: Iterable[str] = ()
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Give a verb one option a setting (those in `only`, or all; less `without`) and `--config`.

    The function receives the resolved Settings as `settings`, and where each value came from as `origins` if it
    declares that parameter; its other parameters become options and arguments as usual. Settings without an
    option still come from the environment and the file.
    """
    chosen = _chosen(only, without)

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        own = dict(inspect.signature(function, eval_str=True).parameters)
        wants_origins = own.pop("origins", None) is not None
        del own["settings"]

        def verb(*, config: Path | None = None, **given: Any) -> R:
            flags = {f.name: given.pop(f.name) for f in chosen}
            settings, origins = resolve(flags, os.environ, config)
            if wants_origins:
                given["origins"] = origins
            return function(settings=settings, **given)

        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [p.replace(kind=keyword) for p in own.values()]
        parameters.append(inspect.Parameter("config", keyword, default=None, annotation=ConfigFile))
        parameters += [inspect.Parameter(f.name, keyword, default=None, annotation=_option(f)) for f in chosen]
        verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        verb.__name__, verb.__doc__, verb.__module__ = (
            function.__name__,
            function.__doc__,
            function.__module__,
        )
        return verb

    return decorate


def _chosen(only: Iterable[str] | None, without: Iterable[str]) -> list[dataclasses.Field[Any]]:
    names = [f.name for f in dataclasses.fields(Settings)] if only is None else list(only)
    left_out = {field(name).name for name in without}
    return [field(name) for name in names if name not in left_out]


def _option(f: dataclasses.Field[Any]) -> Any:
    """The annotation from which typer makes the option. Values stay strings: `checked` reads all of them."""
    kind, flag = field_type(f), f.name.replace("_", "-")
    default = ("yes" if f.default else "no") if kind is bool else f.default
    help_text = f.metadata["help"] + ("" if default in (None, "", ()) else f" Default: {default}.")
    panel = PANELS[f.metadata["scope"]]
    if kind is bool:
        return Annotated[
            bool | None,
            typer.Option(f"--{flag}/--no-{flag}", help=help_text, rich_help_panel=panel, show_default=False),
        ]
    metavar = "|".join(f.metadata["choices"]) or METAVARS[kind]
    option = typer.Option(f"--{flag}", help=help_text, metavar=metavar, rich_help_panel=panel, show_default=False)
    return Annotated[list[str] | None, option] if kind is tuple else Annotated[str | None, option]


def _from_flags(flags: Mapping[str, Any]) -> Given:
    given: Given = {}
    for name, value in flags.items():
        if value is None or value == []:
            continue
        flag = f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
        given[name] = (",".join(value) if isinstance(value, list) else value, f"flag {flag}")
    return given


def _from_environment(environ: Mapping[str, str]) -> Given:
    names = {PREFIX + f.name.upper(): f.name for f in dataclasses.fields(Settings)}
    given: Given = {}
    for variable in sorted(v for v in environ if v.startswith(PREFIX)):
        if variable not in names:
            near = difflib.get_close_matches(variable.removeprefix(PREFIX).lower(), names.values(), n=3)
            meant = " or ".join(PREFIX + name.upper() for name in near)
            hint = f"did you mean {meant}?" if near else f"{PREFIX}* is kept for settings; unset it"
            raise SettingsError(f"environment {variable}: unknown setting; {hint}")
        given[names[variable]] = (environ[variable], f"environment {variable}")
    return given


def _from_toml(path: Path | None) -> Given:
    if path is None and not TOML.exists():
        return {}
    path = TOML if path is None else path
    given: Given = {}
    for key, value in _parsed(path).items():
        name = key.replace("-", "_")
        if name in given:
            raise SettingsError(f"{path}: {name} is given twice, with - and with _")
        if isinstance(value, dict):
            raise SettingsError(f"{path}: [{key}] is a table; settings are plain keys at the top")
        given[name] = (_as_typed(path, name, value), str(path))
    return given


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise SettingsError(f"{path} is not UTF-8 (at line {line})") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error


def _as_typed(path: Path, name: str, value: Any) -> Any:
    """TOML has types, so a number or a truth value in quotes is a mistake there, as it is not in a flag."""
    try:
        kind = field_type(field(name))
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    if isinstance(value, str) and kind in (int, float, bool):
        wanted = "true or false" if kind is bool else "a number"
        raise SettingsError(f"{path}: {name} = {value!r} must be {wanted}, without quotes")
    return value


def _checked(name: str, value: Any, origin: str) -> Any:
    try:
        return checked(field(name), value)
    except SettingsError as error:
        raise SettingsError(f"{origin}: {error}") from None
