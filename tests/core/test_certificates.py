"""The authority, the folders of its members, and the tokens: what holds, what is refused, and what lies on disk."""

import datetime
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from certificates_kit import DAY, Members, now
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from shoal.certificates import credentials, encoding, files, tokens
from shoal.certificates.authority import Authority
from shoal.certificates.credentials import Credentials
from shoal.certificates.member import Member
from shoal.errors import SettingsError, Untrusted


@pytest.fixture
def members(tmp_path: Path) -> Members:
    return Members(tmp_path)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- the authority --------------------------------------------------------------------------------------------------


def test_keys_are_for_their_owner_alone_from_the_first_byte(members: Members) -> None:
    old = os.umask(0)
    try:
        folder = members.issue("a")
        again = Authority.make(members.folder / "another")
    finally:
        os.umask(old)
    assert [mode(path) for path in (folder / "member.key", again.folder / "ca.key")] == [0o600, 0o600]
    assert [mode(path) for path in (folder, again.folder, again.folder / "tokens")] == [0o700, 0o700, 0o700]


def test_a_certificate_says_who_it_is_for(members: Members) -> None:
    member = Credentials(members.issue("a", role="coordinator", shoal="Fish.1", days=30)).member
    assert (member.shoal, member.role, member.name) == ("Fish.1", "coordinator", "a")
    assert member.uri == "shoal://Fish.1/coordinator/a"
    assert datetime.timedelta(days=29) < member.ends - now() <= datetime.timedelta(days=30)
    assert member.begins < now()


def test_an_authority_is_never_made_over_another(members: Members) -> None:
    before = members.authority.pem
    with pytest.raises(SettingsError, match="holds an authority already"):
        Authority.make(members.authority.folder)
    assert Authority.of(members.authority.folder).pem == before


def test_a_folder_without_an_authority_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is no authority: make one with `shoal certs init"):
        Authority.of(tmp_path)


@pytest.mark.parametrize("again", ["a", "A"])
def test_a_name_has_one_holder(members: Members, again: str) -> None:
    members.issue("a")
    with pytest.raises(SettingsError, match="has a certificate: `shoal certs renew` prolongs it"):
        members.issue(again)
    members.issue(again, shoal="another")


def test_a_revoked_name_may_be_given_again(members: Members) -> None:
    first = Credentials(members.issue("a")).member
    members.revoke("a")
    second = Credentials(members.issue("a")).member
    assert members.authority.revoked() == {first.serial}
    assert second.uri == first.uri


@pytest.mark.parametrize(
    ("shoal", "role", "name", "complaint"),
    [
        ("default", "node", "a/b", "name = 'a/b' must be 1 to 56 letters"),
        ("default", "node", "", "name = '' must be"),
        ("a/node/b", "node", "c", "shoal = 'a/node/b' must be 1 to 64"),
        ("default", "king", "a", "unknown role 'king'; known: node, coordinator, observer"),
    ],
)
def test_names_that_could_be_read_in_two_ways_are_refused(
    members: Members, shoal: str, role: str, name: str, complaint: str
) -> None:
    with pytest.raises(SettingsError, match=complaint):
        members.issue(name, role=role, shoal=shoal)


def test_a_request_that_another_has_signed_or_of_another_kind_of_key_is_refused(members: Members) -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(encoding.name("-"))
    foreign = builder.sign(ed25519.Ed25519PrivateKey.generate(), None).public_bytes(serialization.Encoding.PEM)
    large = builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()).public_bytes(
        serialization.Encoding.PEM
    )
    good = x509.load_pem_x509_csr(encoding.request_of(encoding.new_key())).public_bytes(serialization.Encoding.DER)
    broken = good[:-1] + bytes([good[-1] ^ 1])
    for request in (foreign, large, broken, b"", b"nonsense"):
        with pytest.raises(SettingsError, match=r"expected a signing request for an EC P-256 key"):
            members.authority.issue(request, shoal="default", role="node", name="a")
    assert members.authority.issued() == []


def test_what_is_revoked_is_not_renewed(members: Members) -> None:
    folder = members.issue("a")
    members.revoke("a")
    with pytest.raises(SettingsError, match="is revoked, or has ended: issue a new one"):
        members.renew(folder)


def test_all_that_a_name_ever_had_is_revoked_with_it(members: Members) -> None:
    folder = members.issue("a")
    first = Credentials(folder).member
    members.renew(folder)
    second = Credentials(folder).member
    assert first.serial != second.serial
    members.revoke("a")
    assert members.authority.revoked() == {first.serial, second.serial}
    with pytest.raises(SettingsError, match="no certificate of 'a' in shoal 'default' is in force"):
        members.revoke("a")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")
def test_openssl_finds_the_chain_and_the_list_in_order(members: Members) -> None:
    good, bad = members.issue("a"), members.issue("b")
    members.revoke("b", good, bad)

    def verified(folder: Path) -> str:
        ca, crl = str(folder / "ca.pem"), str(folder / "crl.pem")
        args = ["openssl", "verify", "-x509_strict", "-CAfile", ca, "-CRLfile", crl, "-crl_check"]
        done = subprocess.run([*args, str(folder / "member.pem")], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    assert verified(good).endswith("member.pem: OK\n")
    assert "certificate revoked" in verified(bad)


# --- a member's folder ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [0o644, 0o640, 0o604])
def test_a_key_that_others_can_read_is_refused_with_the_remedy(members: Members, bits: int) -> None:
    folder = members.issue("a")
    (folder / "member.key").chmod(bits)
    with pytest.raises(SettingsError, match=rf"member\.key can be read by others \(mode {bits:o}\): chmod 600 "):
        Credentials(folder)


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(SettingsError, match="can be written by others"):
        files.private_folder(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("member.pem", b"", "member.pem holds no certificate"),
        ("member.key", b"", "member.key holds no EC P-256 key"),
        ("ca.pem", b"x" * 100, "ca.pem holds no certificate"),
        ("crl.pem", b"", "its 0 bytes of a revocation list are none in PEM"),
        ("crl.pem", b"x" * (files.FILE_LIMIT + 1), "has more than"),
    ],
)
def test_a_file_that_is_none_is_named(members: Members, file: str, content: bytes, complaint: str) -> None:
    folder = members.issue("a")
    (folder / file).write_bytes(content)
    with pytest.raises(SettingsError, match=complaint):
        Credentials(folder)


@pytest.mark.parametrize("file", credentials.FILES)
def test_a_missing_file_is_an_error_a_missing_revocation_list_too(members: Members, file: str) -> None:
    folder = members.issue("a")
    (folder / file).unlink()
    with pytest.raises(SettingsError, match=r"cannot be read: No such file|holds no certificate: `shoal certs issue`"):
        Credentials(folder)


@pytest.mark.parametrize("file", ["ca.pem", "member.pem", "member.key", "crl.pem"])
def test_files_of_two_authorities_do_not_go_together(members: Members, tmp_path: Path, file: str) -> None:
    folder, other = members.issue("a"), Members(tmp_path / "other").issue("a")
    (folder / file).write_bytes((other / file).read_bytes())
    with pytest.raises(SettingsError, match=r"is not the key of|is not signed by its authority"):
        Credentials(folder)


def test_the_authoritys_own_certificate_makes_nobody_a_member(members: Members) -> None:
    for certificate in (
        members.authority.certificate,
        x509.load_pem_x509_certificate(members.authority.listener(encoding.new_key().public_key())),
    ):
        with pytest.raises(Untrusted, match="names no member of a shoal"):
            Member.of(certificate)


def test_what_does_not_fit_the_settings_is_refused_with_the_remedy(members: Members) -> None:
    held = Credentials(members.issue("a"))
    held.fits(shoal="default", name="", role="node")
    held.fits(shoal="default", name="a", role="node")
    for settings, complaint in (
        ({"shoal": "x", "name": "", "role": "node"}, "is for shoal default, not x: give --shoal default"),
        ({"shoal": "default", "name": "b", "role": "node"}, "is for a, not b: leave --name out"),
        ({"shoal": "default", "name": "", "role": "coordinator"}, "is for a node, this is a coordinator"),
    ):
        with pytest.raises(SettingsError, match=complaint):
            held.fits(**settings)
    ended = Credentials(members.issue_from_to("b", now() - 2 * DAY, now() - DAY))
    with pytest.raises(
        SettingsError, match=r"the certificate of node b of shoal default ended at .*: it needs another"
    ):
        ended.fits(shoal="default", name="", role="node")


def test_whose_certificate_holds_and_whose_does_not(members: Members) -> None:
    held = Credentials(members.issue("a"))
    others = {
        "b": members.issue("b"),
        "revoked": members.issue("revoked"),
        "ended": members.issue_from_to("ended", now() - 2 * DAY, now() - DAY),
        "early": members.issue_from_to("early", now() + DAY, now() + 2 * DAY),
        "elsewhere": members.issue("elsewhere", shoal="another"),
    }
    members.revoke("revoked", held.folder)
    held.refresh()
    said = {name: held.problem(Credentials(folder).member) or "" for name, folder in others.items()}
    assert said["b"] == ""
    assert said["revoked"] == "the certificate of node revoked of shoal default is revoked"
    assert said["ended"].startswith("the certificate of node ended of shoal default ended at ")
    assert said["early"].startswith("the certificate of node early of shoal default begins at ")
    assert said["elsewhere"] == "its certificate is for shoal another, this is shoal default"


def test_changed_files_are_taken_up_and_what_cannot_be_used_is_not(members: Members) -> None:
    folder, other = members.issue("a"), members.issue("b")
    held, b = Credentials(folder), Credentials(other).member
    assert held.refresh() == ""
    first = held.member
    members.renew(folder)
    assert "read again" in held.refresh()
    assert held.member.serial != first.serial
    (folder / "member.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nhalf of")
    with pytest.raises(SettingsError, match=r"member\.pem holds no certificate"):
        held.refresh()
    assert held.member.uri == first.uri
    assert held.refresh() == "", "it is told once"
    members.renew(other)
    members.revoke("b")
    members.tell(folder)
    with pytest.raises(SettingsError, match=r"member\.pem holds no certificate"):
        held.refresh()
    assert held.problem(b) is None, "one file that cannot be used keeps all from before"
    (folder / "member.pem").write_bytes(held.chain[1])
    assert held.refresh().endswith("2 revoked")
    assert held.problem(b) is not None


def test_an_older_revocation_list_takes_nobody_back(members: Members) -> None:
    folder = members.issue("a")
    b = Credentials(members.issue("b")).member
    before = (folder / "crl.pem").read_bytes()
    members.revoke("b", folder)
    held = Credentials(folder)
    (folder / "crl.pem").write_bytes(before)
    with pytest.raises(SettingsError, match=r"crl\.pem is number 1, older than 2: copy the newest"):
        held.refresh()
    assert held.problem(b) is not None


def test_the_folder_of_another_member_has_no_effect_while_it_runs(members: Members) -> None:
    folder, other = members.issue("a"), members.issue("b")
    held = Credentials(folder)
    for name in ("member.key", "member.pem"):
        files.write(folder / name, (other / name).read_bytes(), private=True)
    with pytest.raises(SettingsError, match="is of node b of shoal default now, which needs a new start"):
        held.refresh()
    assert held.member.name == "a"


@pytest.mark.parametrize(("days", "expected"), [(6, "ends at"), (8, ""), (-1, "nobody will talk to this process")])
def test_the_end_is_announced_a_week_before(members: Members, days: int, expected: str) -> None:
    said = Credentials(members.issue_from_to("a", now() - 2 * DAY, now() + days * DAY)).warning()
    assert expected in said
    assert bool(said) == bool(expected)


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_a_token_is_good_once(members: Members) -> None:
    token = tokens.promise(members.authority, "default", "node", "a", 30, 5)
    read = tokens.Token.read(f" {token}\n")
    assert read == token
    assert len(str(token)) == 64
    granted = tokens.redeem(members.authority, read.secret)
    assert granted[:4] == ("default", "node", "a", 30)
    with pytest.raises(SettingsError, match="the token is unknown, or was used"):
        tokens.redeem(members.authority, read.secret)


def test_a_token_ends(members: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tokens.promise(members.authority, "default", "node", "a", 30, 5)
    monkeypatch.setattr(tokens.time, "time", lambda: now().timestamp() + 301)
    with pytest.raises(SettingsError, match="the token has ended"):
        tokens.redeem(members.authority, token.secret)


def test_tokens_that_have_ended_are_forgotten(members: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens.promise(members.authority, "default", "node", "a", 30, 5)
    later = now().timestamp() + 301
    monkeypatch.setattr(tokens.time, "time", lambda: later)
    fresh = tokens.promise(members.authority, "default", "node", "b", 30, 5)
    assert len(list((members.authority.folder / "tokens").iterdir())) == 1
    assert tokens.redeem(members.authority, fresh.secret).name == "b"


def test_the_authority_keeps_no_secret_of_a_token(members: Members) -> None:
    token = tokens.promise(members.authority, "default", "node", "a", 30, 5)
    (kept,) = (members.authority.folder / "tokens").iterdir()
    assert mode(kept) == 0o600
    for text in (token.secret.hex(), str(token)[:20]):
        assert text not in kept.read_text() + kept.name


@pytest.mark.parametrize("text", ["", "x", "x" * 63, "x" * 65, "é" * 64, "*" * 64])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="expected a token of 64 characters"):
        tokens.Token.read(text)


@pytest.mark.parametrize("minutes", [0, -1, 10**9])
def test_a_token_holds_for_some_time_and_not_for_ever(members: Members, minutes: int) -> None:
    with pytest.raises(SettingsError, match="must be from 1 to"):
        tokens.promise(members.authority, "default", "node", "a", 30, minutes)
