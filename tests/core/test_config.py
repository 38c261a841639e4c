"""Four sources of settings, their order, and what each says when it is wrong."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import pytest
import typer

from shoal.cli import main
from shoal.cli.options import resolve, with_settings
from shoal.errors import SettingsError
from shoal.fields import field_type
from shoal.settings import Settings
from shoal.traits import ALGORITHMS


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in a folder without shoal.toml, and without SHOAL_* in the environment."""
    import os

    monkeypatch.chdir(tmp_path)
    for variable in [v for v in os.environ if v.startswith("SHOAL_")]:
        monkeypatch.delenv(variable)
    return tmp_path


def toml(text: str, name: str = "shoal.toml") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def refusal(flags: dict[str, object] | None = None, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        resolve(flags or {}, environ or {})
    return str(caught.value)


# --- the order of the sources ---------------------------------------------------------------------------------------


def test_without_any_source_everything_is_default() -> None:
    settings, origins = resolve({}, {})
    assert settings == Settings()
    assert set(origins.values()) == {"default"}
    assert origins.keys() == {f.name for f in dataclasses.fields(Settings)}


def test_a_flag_overrules_the_environment_which_overrules_the_file() -> None:
    toml("lr = 0.1\nbatch = 1\nseed = 1\n")
    settings, origins = resolve({"lr": "0.3"}, {"SHOAL_LR": "0.2", "SHOAL_BATCH": "2"})
    assert (settings.lr, settings.batch, settings.seed) == (0.3, 2, 1)
    assert origins["lr"] == "flag --lr"
    assert origins["batch"] == "environment SHOAL_BATCH"
    assert origins["seed"] == "shoal.toml"
    assert origins["rounds"] == "default"


def test_a_flag_that_was_not_given_overrules_nothing() -> None:
    settings, _ = resolve({"lr": None, "peers": [], "download": None}, {"SHOAL_LR": "0.2", "SHOAL_DOWNLOAD": "1"})
    assert (settings.lr, settings.download) == (0.2, True)


def test_a_negative_flag_overrules_too_and_is_named_as_typed() -> None:
    settings, origins = resolve({"download": False}, {"SHOAL_DOWNLOAD": "true"})
    assert not settings.download
    assert origins["download"] == "flag --no-download"


def test_the_file_given_by_hand_replaces_the_one_of_the_folder() -> None:
    toml("lr = 0.1\nbatch = 1\n")
    settings, origins = resolve({}, {}, toml("lr = 0.7", "other.toml"))
    assert (settings.lr, settings.batch) == (0.7, 16)
    assert origins["lr"] == "other.toml"


def test_keys_of_the_file_may_have_dashes() -> None:
    toml("suspect-after-s = 3\nheartbeat_s = 1.0\n")
    settings, _ = resolve({}, {})
    assert (settings.suspect_after_s, settings.heartbeat_s) == (3.0, 1.0)


@pytest.mark.parametrize("written", ['peers = ["a:1", "b:2"]', 'peers = "a:1,b:2"'])
def test_a_list_may_be_written_as_a_list_or_with_commas(written: str) -> None:
    toml(written)
    assert resolve({}, {})[0].peers == ("a:1", "b:2")
    assert resolve({"peers": ["c:3,d:4", "e:5"]}, {})[0].peers == ("c:3", "d:4", "e:5")


def test_a_length_in_one_unit_overrules_the_other_unit_of_a_weaker_source() -> None:
    toml("rounds = 540")
    settings, origins = resolve({"gradients": "2700"}, {})
    assert (settings.rounds, settings.gradients) == (None, 2700)
    assert (origins["rounds"], origins["gradients"]) == ("default", "flag --gradients")


def test_both_units_from_one_source_contradict() -> None:
    assert "not both" in refusal({"rounds": "1", "gradients": "2"})


# --- what is wrong, and where ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lrr = 1", "shoal.toml: unknown setting 'lrr'; did you mean lr?"),
        ('batch = "16"', "shoal.toml: batch = '16' must be a number, without quotes"),
        ('download = "yes"', "shoal.toml: download = 'yes' must be true or false, without quotes"),
        ("lr = true", "shoal.toml: lr = True must be a number"),
        ("lr = -1", "shoal.toml: lr = -1.0 must be above 0"),
        ("task = 1979-05-27", "shoal.toml: task = datetime.date(1979, 5, 27) must be a string"),
        ("[node]\nlr = 1", "shoal.toml: [node] is a table; settings are plain keys at the top"),
        ("data-dir = 'a'\ndata_dir = 'b'", "shoal.toml: data_dir is given twice, with - and with _"),
    ],
)
def test_a_wrong_key_or_value_names_the_file_and_the_key(text: str, message: str) -> None:
    toml(text)
    assert refusal() == message


def test_a_broken_file_names_the_line() -> None:
    toml("lr = 0.1\n\nbatch = = 3\n")
    assert refusal().startswith("shoal.toml is not valid TOML: ")
    assert "line 3" in refusal()


def test_a_file_that_is_not_text_names_the_line() -> None:
    Path("shoal.toml").write_bytes(b"lr = 0.1\nname = '\xff'\n")
    assert refusal() == "shoal.toml is not UTF-8 (at line 2)"


def test_a_file_that_is_not_there_is_an_error_only_if_it_was_asked_for() -> None:
    resolve({}, {})
    with pytest.raises(SettingsError, match=r"missing\.toml cannot be read: No such file"):
        resolve({}, {}, Path("missing.toml"))


def test_a_wrong_value_of_the_environment_names_the_variable() -> None:
    assert refusal(environ={"SHOAL_LR": "-1"}) == "environment SHOAL_LR: lr = -1.0 must be above 0"


def test_an_unknown_variable_is_answered_with_near_ones() -> None:
    assert refusal(environ={"SHOAL_BATCHH": "1"}) == (
        "environment SHOAL_BATCHH: unknown setting; did you mean SHOAL_BATCH?"
    )
    assert "SHOAL_* is kept for settings" in refusal(environ={"SHOAL_QQQQQQQQ": "1"})
    resolve({}, {"OTHER_LR": "x", "_SHOAL_COMPLETE": "x", "SHOALS": "x"})


def test_a_wrong_flag_is_named_as_typed() -> None:
    assert refusal({"suspect_after_s": "soon"}) == "flag --suspect-after-s: suspect_after_s = 'soon' must be a number"


# --- options from the table -----------------------------------------------------------------------------------------


def run_verb(app: typer.Typer, *args: str) -> None:
    app(list(args), standalone_mode=False)


def test_a_verb_gets_its_settings_and_its_own_options() -> None:
    seen: dict[str, object] = {}
    app = typer.Typer()

    @app.command()
    @with_settings()
    def verb(
        settings: Settings, origins: dict[str, str], model: str, out: Annotated[str, typer.Option()] = "here"
    ) -> None:
        """Does it."""
        seen.update(settings=settings, origin=origins["lr"], model=model, out=out)

    run_verb(app, "m.bin", "--lr", "0.5", "--peers", "a:1", "--peers", "b:2", "--no-resume", "--out", "there")
    assert seen["settings"] == Settings(lr=0.5, peers=("a:1", "b:2"))
    assert (seen["origin"], seen["model"], seen["out"]) == ("flag --lr", "m.bin", "there")


def test_a_verb_may_offer_some_settings_only() -> None:
    seen: list[Settings] = []
    app = typer.Typer()

    @app.command()
    @with_settings(only=("task", "seed", "device"), without=("device",))
    def verb(settings: Settings) -> None:
        seen.append(settings)

    toml("device = 'cpu'")
    run_verb(app, "--seed", "3")
    assert seen == [Settings(seed=3, device="cpu")]
    with pytest.raises(Exception, match="No such option: --device"):
        run_verb(app, "--device", "cpu")


def test_a_name_that_is_no_setting_is_refused_where_the_verb_is_written() -> None:
    with pytest.raises(SettingsError, match="unknown setting 'lrr'"):
        with_settings(only=("lrr",))
    with pytest.raises(SettingsError, match="unknown setting 'lrr'"):
        with_settings(without=("lrr",))


def test_every_setting_is_an_option_with_its_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["config", "validate", "--help"]) == 0
    text = capsys.readouterr().out
    for f in dataclasses.fields(Settings):
        assert f"--{f.name.replace('_', '-')}" in text
        assert f.metadata["help"] in text
        if field_type(f) is bool:
            assert f"--no-{f.name.replace('_', '-')}" in text
    assert "This node" in text
    assert "The run" in text


# --- shoal config ---------------------------------------------------------------------------------------------------


def test_show_prints_key_value_and_origin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    toml("batch = 64")
    monkeypatch.setenv("SHOAL_SEED", "7")
    assert main(["config", "show", "--lr", "0.25"]) == 0
    rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    found = {row[0]: [cell.strip() for cell in row[1:]] for row in rows}
    assert found["lr"] == ["0.25", "flag --lr"]
    assert found["batch"] == ["64", "shoal.toml"]
    assert found["seed"] == ["7", "environment SHOAL_SEED"]
    assert found["download"] == ["false", "default"]
    assert found.keys() == {"setting", *(f.name for f in dataclasses.fields(Settings))}


def test_show_as_json_keeps_the_types(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--json", "--peers", "a:1"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows["peers"] == {"value": ["a:1"], "origin": "flag --peers"}
    assert rows["rounds"] == {"value": None, "origin": "default"}


def test_validate_counts_what_was_changed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "validate", "--lr", "0.25", "--name", "a"]) == 0
    assert capsys.readouterr().out.startswith("valid: 2 of ")


def test_validate_fails_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    toml("algorithm = 'sgd'")
    assert main(["config", "validate"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: shoal.toml: unknown algorithm 'sgd'; known: " + ", ".join(ALGORITHMS) + "\n"
    assert captured.out == ""
