"""The table of settings: types, ranges, contradictions, and the documents made of it."""

import dataclasses
import math

import pytest

from shoal.documents import differing_keys, fingerprint
from shoal.errors import SettingsError
from shoal.fields import checked, field_type, parse_address, parse_rate, parse_shard
from shoal.settings import Settings, field
from shoal.traits import ALGORITHMS, CODECS

A_RATE = (
    "a number and a unit (kbit, Mbit, Gbit, kB, MB, GB; a second), such as 10Mbit, at least 64kbit; or 0 for no limit"
)


def refusal(**values: object) -> str:
    with pytest.raises(SettingsError) as caught:
        Settings(**values)
    return str(caught.value)


def test_every_setting_has_a_sentence_a_scope_and_a_sound_default() -> None:
    for f in dataclasses.fields(Settings):
        assert f.metadata["help"].endswith("."), f.name
        assert f.metadata["scope"] in ("run", "node"), f.name
        assert checked(f, f.default) == f.default, f.name


def test_no_two_settings_differ_only_in_dashes_or_case() -> None:
    names = [f.name for f in dataclasses.fields(Settings)]
    assert all(name == name.lower() and "-" not in name for name in names)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0}, "lr = 0.0 must be above 0"),
        ({"lr": -0.1}, "lr = -0.1 must be above 0"),
        ({"lr": math.inf}, "lr = inf must be below 1000000.0"),
        ({"lr": math.nan}, "lr = nan must be a number"),
        ({"lr": "fast"}, "lr = 'fast' must be a number"),
        ({"lr": True}, "lr = True must be a number"),
        ({"warmup": 1}, "warmup = 1.0 must be below 1"),
        ({"batch": 0}, "batch = 0 must be at least 1"),
        ({"batch": 1.5}, "batch = 1.5 must be a whole number"),
        ({"batch": math.inf}, "batch = inf must be a whole number"),
        ({"overlap": 1001}, "overlap = 1001 must be at most 1000"),
        ({"download": "maybe"}, "download = 'maybe' must be true or false"),
        ({"task": 3}, "task = 3 must be a string"),
        ({"peers": [1, 2]}, "peers = [1, 2] must be a list of strings"),
        ({"algorithm": "sgd"}, "unknown algorithm 'sgd'; known: " + ", ".join(ALGORITHMS)),
        ({"lazy": "sometimes"}, "unknown lazy 'sometimes'; known: auto, always, never"),
        ({"name": "a b"}, "name = 'a b' must be 1 to 56 letters, digits, - or _"),
        ({"device": "gpu"}, "device = 'gpu' must be auto, cpu or cuda:N"),
        (
            {"shard": "5/5"},
            "shard = '5/5' must be K/N, K from 0 and below N; or auto/N, K by the number in the host's name",
        ),
        ({"listen": "localhost"}, "listen = 'localhost' must be HOST:PORT, the port from 0 to 65535"),
        ({"peers": "a:1,b"}, "peers = 'b' must be HOST:PORT, the port from 0 to 65535"),
        ({"max_rate": "10"}, f"max_rate = '10' must be {A_RATE}"),
        (
            {"discovery": "mdns,magic"},
            "discovery = 'mdns,magic' must be mdns, static, dns, or some of them joined by commas",
        ),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_name(values: dict[str, object], message: str) -> None:
    assert refusal(**values) == message


@pytest.mark.parametrize("codec", ["q8", "q4", "sign"])
def test_packed_rounds_cannot_be_left_out(codec: str) -> None:
    said = refusal(algorithm="d-psgd", exchange_every=2, codec=codec)
    assert said.startswith(f"exchange_every = 2 does not go with codec {codec}: ")


@pytest.mark.parametrize(("algorithm", "codec"), [("ad-psgd", "sign"), ("ad-psgd", "f32"), ("d-psgd", "bf16")])
def test_other_exchanges_may_be_left_out(algorithm: str, codec: str) -> None:
    assert Settings(algorithm=algorithm, exchange_every=4, codec=codec).exchange_every == 4


def test_rounds_and_gradients_exclude_each_other() -> None:
    assert "not both" in refusal(rounds=3, gradients=4)


@pytest.mark.parametrize(
    "values",
    [
        {"algorithm": "d2", "overlap": 2},
        {"algorithm": "d2", "exchange_every": 2},
        {"algorithm": "allreduce-sgd", "exchange_every": 2},
        {"algorithm": "ad-psgd", "lazy": "always"},
        {"algorithm": "ad-psgd", "mixing": "uniform:0.2"},
    ],
)
def test_a_setting_without_meaning_for_the_algorithm_is_refused(values: dict[str, object]) -> None:
    assert str(values["algorithm"]) in refusal(**values)


def test_strings_of_flags_become_the_fields_types() -> None:
    settings = Settings(lr="5e-1", batch="32", download="yes", resume="False", rounds="7", peers=" a:1, b:2 ,")
    assert (settings.lr, settings.batch, settings.rounds) == (0.5, 32, 7)
    assert (settings.download, settings.resume) == (True, False)
    assert settings.peers == ("a:1", "b:2")


def test_a_whole_float_counts_as_an_integer() -> None:
    assert Settings(batch=16.0).batch == 16
    assert isinstance(Settings(batch=16.0).batch, int)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().lr = 1.0


def test_the_type_behind_an_optional_field_is_found() -> None:
    types = {name: field_type(field(name)) for name in ("rounds", "lr", "peers", "download", "task")}
    assert types == {"rounds": int, "lr": float, "peers": tuple, "download": bool, "task": str}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("node-a.lan:0", ("node-a.lan", 0)),
        ("[fe80::1%eth0]:9", ("fe80::1%eth0", 9)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", ":", "host", "host:", ":1", "host:65536", "::1:80", "a b:1", "http://a:1", "a:1\n"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_address(text)


def test_a_shard_counts_from_zero() -> None:
    assert parse_shard("0/1") == (0, 1)
    assert parse_shard("4/5") == (4, 5)
    for text in ("1/1", "-1/3", "1", "a/b", "0/0"):
        with pytest.raises(ValueError, match="K/N"):
            parse_shard(text)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("", 0.0),
        ("0", 0.0),
        ("64kbit", 8e3),
        ("10Mbit", 1.25e6),
        ("10Mbit/s", 1.25e6),
        ("10 Mbit", 1.25e6),
        ("1Gbit", 1.25e8),
        ("8kB", 8e3),
        ("1.5MB", 1.5e6),
        ("2GB/s", 2e9),
    ],
)
def test_a_rate_is_bits_or_bytes_a_second(text: str, rate: float) -> None:
    assert parse_rate(text) == pytest.approx(rate)
    assert Settings(max_rate=text).max_bytes_a_second == pytest.approx(rate)


@pytest.mark.parametrize(
    "text",
    [
        "10",
        "10Mb",
        "10mbit",
        "10MBit",
        "Mbit",
        "-1MB",
        "1e3MB",
        "1,5MB",
        "10Mbps",
        "63kbit",
        "0MB",
        "0.0",
        " 1MB",
        "1MB\n",
    ],
)
def test_what_is_no_rate_or_too_low_a_one_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 10Mbit, at least 64kbit"):
        parse_rate(text)


# --- length of a run ------------------------------------------------------------------------------------------------


def test_a_run_counted_in_rounds_has_so_many_gradients_a_node() -> None:
    settings = Settings(rounds=540)
    assert settings.total_rounds(5) == 540
    assert settings.total_gradients(5) == 2700


def test_a_run_counted_in_gradients_ends_after_the_last_whole_round() -> None:
    settings = Settings(gradients=2701)
    assert settings.total_gradients(5) == 2701
    assert settings.total_rounds(5) == 541
    assert Settings(gradients=1).total_rounds(5) == 1


# --- documents ------------------------------------------------------------------------------------------------------


def test_the_run_document_holds_run_settings_only() -> None:
    document = Settings(lr=0.5, name="a", listen="127.0.0.1:1").run_document()
    assert document["lr"] == 0.5
    assert not {"name", "listen", "task", "shard", "max_rate"} & document.keys()


def test_nodes_that_differ_only_in_their_own_business_have_one_fingerprint() -> None:
    ours, theirs = (Settings(name=name, threads=k, shard=f"{k}/5") for k, name in ((1, "a"), (2, "b")))
    assert fingerprint(ours.run_document()) == fingerprint(theirs.run_document())


def test_pairs_may_have_unlike_codecs_and_rounds_may_not() -> None:
    for algorithm, same in (("ad-psgd", True), ("d2", False), ("d-psgd", False)):
        ours, theirs = (Settings(algorithm=algorithm, codec=codec).run_document() for codec in ("f32", "q8"))
        assert (fingerprint(ours) == fingerprint(theirs)) is same, algorithm


@pytest.mark.parametrize("old", ["full", "packed"])
def test_a_codec_that_is_not_known_is_refused_with_the_known_ones(old: str) -> None:
    assert refusal(codec=old) == f"unknown codec {old!r}; known: f32, f16, bf16, q8, q4, sign"


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != "f32"])
def test_every_codec_is_for_the_algorithms_that_pack_and_for_float32(codec: str) -> None:
    assert refusal(algorithm="allreduce-sgd", codec=codec).startswith(f"codec = {codec} is for ad-psgd, d-psgd, d2;")
    assert refusal(codec=codec, precision="f64").startswith(f"codec = {codec} is for float32")


def test_a_fingerprint_depends_on_content_and_not_on_order() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint({})) == 16


def test_differing_keys_say_both_sides() -> None:
    ours, theirs = {"lr": 0.1, "batch": 16, "same": 1}, {"lr": 0.2, "codec": "f32", "same": 1}
    assert differing_keys(ours, theirs) == [
        "batch: ours 16, theirs absent",
        'codec: ours absent, theirs "f32"',
        "lr: ours 0.1, theirs 0.2",
    ]


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(SettingsError, match=r"unknown setting 'suspect_after'; did you mean suspect_after_s\?"):
        field("suspect_after")
    with pytest.raises(SettingsError, match="`shoal config show` lists them"):
        field("zzzzzz")
