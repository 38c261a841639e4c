"""`shoal certs`: what it says, and that it says it without a traceback."""

from pathlib import Path

import pytest

from shoal.certificates.credentials import Credentials
from shoal.cli import main


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def certs(*args: str) -> int:
    return main(["certs", *args])


def test_from_an_authority_to_a_renewed_member(capsys: pytest.CaptureFixture[str]) -> None:
    assert certs("init") == 0
    assert certs("issue", "clinic", "--shoal", "north", "--days", "30") == 0
    said = capsys.readouterr().out
    assert "clinic: node clinic of shoal north, until " in said
    assert "shoal node --shoal north --tls clinic" in said
    before = Credentials(Path("clinic")).member
    assert certs("renew", "clinic") == 0
    after = Credentials(Path("clinic")).member
    assert (after.uri, after.serial == before.serial) == (before.uri, False)


def test_show_says_who_in_which_role_and_until_when(capsys: pytest.CaptureFixture[str]) -> None:
    certs("init")
    certs("issue", "a")
    certs("issue", "eye", "--role", "observer")
    certs("revoke", "a")
    capsys.readouterr()
    assert certs("show", "eye") == 0
    member = Credentials(Path("eye")).member
    assert capsys.readouterr().out.splitlines() == [
        "observer eye of shoal default: in force",
        f"  {member.begins:%Y-%m-%d %H:%M} to {member.ends:%Y-%m-%d %H:%M} UTC, number {member.serial:x}",
        f"  fingerprint {member.fingerprint}",
    ]
    assert certs("show", "shoal-ca") == 0
    listed = capsys.readouterr().out
    assert listed.startswith("authority shoal-ca, until ")
    assert "node a of shoal default: revoked" in listed
    assert "observer eye of shoal default: in force" in listed


def test_a_revocation_says_how_the_others_hear_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    certs("init")
    certs("issue", "a")
    capsys.readouterr()
    assert certs("revoke", "a") == 0
    said = capsys.readouterr().out
    assert said.startswith("revoked: node a of shoal default, number ")
    assert "shoal certs update ADDRESS" in said


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["init"], "shoal-ca holds an authority already"),
        (["issue", "a"], "a holds a certificate already; give another folder with --out"),
        (["issue", "a", "--out", "b"], "a of shoal default has a certificate: `shoal certs renew` prolongs it"),
        (["issue", "b", "--role", "king"], "unknown role 'king'; known: node, coordinator, observer"),
        (["issue", "b", "--days", "0"], "days = 0 must be from 1 to 3650"),
        (["issue", "b", "--ca", "nowhere"], "nowhere is no authority: make one with `shoal certs init nowhere`"),
        (["issue", "../b", "--out", "b"], "name = '../b' must be 1 to 56 letters"),
        (["token", "b", "--minutes", "0"], "minutes = 0 must be from 1 to"),
        (["revoke", "b"], "no certificate of 'b' in shoal 'default' is in force"),
        (["show", "nowhere"], "nowhere holds no certificate"),
        (["renew", "nowhere"], "nowhere holds no certificate"),
        (["renew", "a", "--ca", "other"], "a is not of the authority other; give the other with --ca"),
        (["join", "x", "127.0.0.1:1"], "expected a token of 64 characters"),
        (["update", "nowhere", "a"], "address 'nowhere' must be HOST:PORT"),
        (["serve", "--listen", "192.0.2.1:1"], "cannot listen on 192.0.2.1:1"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    capsys: pytest.CaptureFixture[str], args: list[str], complaint: str
) -> None:
    for made in (["init"], ["init", "other"], ["issue", "a"]):
        assert certs(*made) == 0
    capsys.readouterr()
    assert certs(*args) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert complaint in said
    assert said.count("\n") == 1


def test_what_was_refused_leaves_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    certs("init")
    assert certs("issue", "../b", "--out", "b") == 2
    assert not Path("b", "member.key").exists()
    assert list(Path("shoal-ca", "issued").iterdir()) == []
