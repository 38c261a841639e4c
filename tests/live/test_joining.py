"""First and next certificates over a real port: who gets them, who does not, and whom a member believes."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from certificates_kit import DAY, Members, now

from shoal.certificates import encoding, joining, tokens
from shoal.certificates.credentials import Credentials
from shoal.certificates.tokens import Token
from shoal.errors import PeerError, SettingsError, Untrusted

pytestmark = pytest.mark.live


@pytest.fixture
def members(tmp_path: Path) -> Members:
    return Members(tmp_path)


@pytest.fixture
async def address(members: Members) -> AsyncIterator[str]:
    async with joining.serving(members.authority, "127.0.0.1:0") as bound:
        yield bound


def promise(members: Members, name: str = "a", role: str = "node") -> Token:
    return tokens.promise(members.authority, "default", role, name, 30, 5)


async def raw(address: str, line: bytes, folder: Path | None = None) -> dict[str, Any]:
    """What the authority answers to any line, from a caller with a certificate or without."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if folder is not None:
        context.load_cert_chain(folder / "member.pem", folder / "member.key")
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        writer.write(line)
        return dict(json.loads(await reader.readline() or b"{}"))
    finally:
        writer.transport.abort()


# --- what goes well -------------------------------------------------------------------------------------------------


async def test_a_token_brings_a_certificate_for_a_key_that_stays(
    members: Members, address: str, tmp_path: Path
) -> None:
    folder = tmp_path / "here"
    member = await joining.join(promise(members, "clinic", "coordinator"), address, folder)
    assert (member.shoal, member.role, member.name) == ("default", "coordinator", "clinic")
    assert Credentials(folder).member == member
    assert members.authority.issued() == [member]
    kept = [path for path in members.authority.folder.rglob("*") if path.is_file()]
    key = (folder / "member.key").read_bytes().splitlines()[1]
    assert not any(key in path.read_bytes() for path in kept)


async def test_a_member_gets_its_next_certificate_and_the_newest_list(members: Members, address: str) -> None:
    folder, other = members.issue("a"), Credentials(members.issue("b")).member
    before, key = Credentials(folder).member, (folder / "member.key").read_bytes()
    members.revoke("b")
    after = await joining.renew(folder, address)
    assert after.uri == before.uri
    assert after.serial != before.serial
    assert (folder / "member.key").read_bytes() == key
    assert Credentials(folder).revoked == {other.serial}


async def test_a_member_gets_the_newest_list_alone(members: Members, address: str) -> None:
    folder = members.issue("a")
    members.issue("b")
    before = Credentials(folder).member
    members.revoke("b")
    assert await joining.update(folder, address) == 1
    assert Credentials(folder).member == before


# --- who gets nothing -----------------------------------------------------------------------------------------------


async def test_of_two_who_come_with_one_token_one_gets_a_certificate(
    members: Members, address: str, tmp_path: Path
) -> None:
    token = promise(members)
    both = [joining.join(token, address, tmp_path / name) for name in ("x", "y")]
    done = await asyncio.gather(*both, return_exceptions=True)
    (refusal,) = [one for one in done if isinstance(one, PeerError)]
    assert "the token is unknown, or was used" in str(refusal)
    assert len(members.authority.issued()) == 1
    assert [(tmp_path / name).exists() for name in ("x", "y")].count(True) == 1, "nothing is left of the other"


async def test_another_secret_gets_nothing(members: Members, address: str, tmp_path: Path) -> None:
    token = promise(members)._replace(secret=bytes(16))
    with pytest.raises(PeerError, match="the token is unknown"):
        await joining.join(token, address, tmp_path / "x")
    assert members.authority.issued() == []


async def test_a_request_that_is_none_does_not_spend_the_token(members: Members, address: str, tmp_path: Path) -> None:
    token = promise(members)
    question = {"token": token.secret.hex(), "request": "nonsense"}
    answer = await raw(address, json.dumps(question).encode() + b"\n")
    assert answer == {"error": "expected a signing request for an EC P-256 key, signed by that key"}
    await joining.join(token, address, tmp_path / "x")


async def test_a_revoked_member_gets_nothing(members: Members, address: str) -> None:
    folder = members.issue("a")
    members.revoke("a")
    for attempt in (joining.renew, joining.update):
        with pytest.raises(PeerError, match="the certificate of node a of shoal default is revoked"):
            await attempt(folder, address)
    assert len(members.authority.issued()) == 1


async def test_an_ended_certificate_brings_no_next_one(members: Members, address: str) -> None:
    folder = members.issue_from_to("a", now() - 3 * DAY, now() - DAY)
    with pytest.raises(SettingsError, match=r"ended at .*: it needs another: `shoal certs token` there"):
        await joining.renew(folder, address)


async def test_a_member_of_another_authority_gets_nothing(members: Members, address: str, tmp_path: Path) -> None:
    with pytest.raises(Untrusted, match="is not our authority"):
        await joining.renew(Members(tmp_path / "other").issue("a"), address)


@pytest.mark.parametrize("question", [{}, {"request": encoding.request_of(encoding.new_key()).decode()}])
async def test_who_has_neither_token_nor_certificate_gets_nothing(address: str, question: dict[str, str]) -> None:
    answer = await raw(address, json.dumps(question).encode() + b"\n")
    assert answer == {"error": "expected a token, or a certificate that holds"}


@pytest.mark.parametrize(
    "line", [b"\n", b"nonsense\n", b"[]\n", b"{" * 9_000 + b"\n", b'{"token": 1}\n', b'{"token": "x"}\n', b"\xff\n"]
)
async def test_what_is_no_question_is_refused_and_the_next_is_answered(
    members: Members, address: str, tmp_path: Path, line: bytes
) -> None:
    answer = await raw(address, line)
    assert list(answer) == ["error"]
    assert "Traceback" not in answer["error"]
    await joining.join(promise(members), address, tmp_path / "x")


async def test_a_line_without_an_end_is_cut_off(members: Members, address: str, tmp_path: Path) -> None:
    with contextlib.suppress(ConnectionError):
        assert "certificate" not in await raw(address, b"x" * (joining.QUESTION_LIMIT * 8))
    await joining.join(promise(members), address, tmp_path / "x")


# --- whom one asks --------------------------------------------------------------------------------------------------


async def test_a_token_is_told_to_nobody_but_its_authority(members: Members, tmp_path: Path) -> None:
    other = Members(tmp_path / "other")
    async with joining.serving(other.authority, "127.0.0.1:0") as elsewhere:
        with pytest.raises(Untrusted, match="is not the authority that made this token"):
            await joining.join(promise(members), elsewhere, tmp_path / "x")
    assert not (tmp_path / "x").exists()


async def test_a_member_that_poses_as_the_authority_hears_no_token(members: Members, tmp_path: Path) -> None:
    """It may show the authority's certificate, which is no secret; its own then has the wrong name."""
    heard: list[bytes] = []
    folder = members.issue("liar")

    async def pose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readline())
        writer.write(json.dumps({"authority": members.authority.pem.decode()}).encode() + b"\n")
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "member.pem", folder / "member.key")
    server = await asyncio.start_server(pose, "127.0.0.1", 0, ssl=context)
    async with server:
        with pytest.raises(Untrusted, match="is not our authority: Hostname mismatch"):
            await joining.join(promise(members), "127.0.0.1:{1}".format(*server.sockets[0].getsockname()), tmp_path)
    assert [json.loads(line) for line in heard] == [{"authority": True}]


async def test_nothing_is_overwritten(members: Members, address: str) -> None:
    folder = members.issue("a")
    token = promise(members, "b")
    with pytest.raises(SettingsError, match="holds a certificate already"):
        await joining.join(token, address, folder)
    assert Credentials(folder).member.name == "a"


@pytest.mark.parametrize("where", ["127.0.0.1:1", "nowhere", "127.0.0.1:99999"])
async def test_where_nobody_listens_is_an_error_with_that_address(members: Members, where: str, tmp_path: Path) -> None:
    with pytest.raises((PeerError, SettingsError), match=where):
        await joining.join(promise(members), where, tmp_path / "x")
