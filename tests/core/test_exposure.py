"""What is listened on beyond loopback, with which word, and what a start says about it."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from certificates_kit import Members, tls

from shoal.errors import SettingsError
from shoal.process import check_exposure, say_exposure, tls_of
from shoal.settings import Settings

BEYOND = "192.0.2.1:7450"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"listen": "[::1]:0", "http": "localhost:0"},
        {"listen": BEYOND, "insecure": True},
        {"listen": BEYOND, "tls": "somewhere"},
        {"listen": "0.0.0.0:7450", "tls": "somewhere"},
        {"listen": "[::]:7450", "insecure": True},
        {"http": BEYOND, "insecure": True},
        {"listen": BEYOND, "http": BEYOND, "tls": "somewhere", "insecure": True},
    ],
)
def test_loopback_needs_no_word_and_the_rest_has_one(settings: dict[str, object]) -> None:
    check_exposure(Settings(**settings))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"listen": BEYOND}, "give --tls DIR (`shoal certs` makes one), or --insecure if that is meant"),
        ({"http": BEYOND}, f"http = {BEYOND} is beyond loopback"),
        ({"http": BEYOND, "tls": "somewhere"}, "give --insecure if that is meant"),
        ({"listen": "example.org:1"}, "is beyond loopback"),
    ],
)
def test_beyond_loopback_is_refused_without_one(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_exposure(Settings(**settings))
    assert complaint in str(caught.value)


@pytest.mark.parametrize("insecure", [False, True])
def test_a_start_says_who_may_be_at_the_other_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, insecure: bool
) -> None:
    caplog.set_level(logging.INFO, "shoal")
    settings = Settings(insecure=insecure)
    say_exposure(settings, tls(Members(tmp_path).issue("a")), BEYOND)
    assert caplog.messages[0].startswith("TLS with members of shoal default alone, as a until ")
    assert [m for m in caplog.messages[1:] if "--insecure: HTTP is in plain text" in m] == caplog.messages[1:]
    assert len(caplog.messages) == 1 + insecure
    caplog.clear()
    say_exposure(settings, None, BEYOND)
    said = [f"--insecure: no TLS, so whoever reaches {BEYOND} can join and read every model"]
    assert caplog.messages == (said if insecure else [])


def test_a_folder_that_cannot_be_used_ends_the_start_and_never_becomes_plain_text(tmp_path: Path) -> None:
    assert tls_of(Settings(), "node") is None
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(SettingsError, match="holds no certificate: `shoal certs issue`"):
            tls_of(Settings(tls=str(folder)), "node")
    held = tls_of(Settings(tls=str(Members(tmp_path).issue("a"))), "node")
    assert held is not None
    assert held.name == "a"


def test_a_process_without_tls_does_not_carry_what_it_needs() -> None:
    code = "import sys, shoal.daemon, shoal_coordinator.service; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
