"""A first certificate, or the next one, for a key that never leaves its machine: one question and one answer.

The authority's machine listens for as long as `shoal certs serve` runs. Over TLS 1.3 a line of JSON goes each way:

    {"authority": true}                       the authority's certificate, for who knows its fingerprint
    {"token": HEX, "request": PEM}            a first certificate
    {"request": PEM}                          the next one; the caller's certificate says whose
    {}                                        the revocation list alone

Every answer but the first brings authority, revocation list and, where one was asked for, certificate.
"""

import asyncio
import contextlib
import json
import logging
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from shoal.certificates import credentials, encoding, files, tokens
from shoal.certificates.authority import LISTENER_HOST, Authority
from shoal.certificates.credentials import Credentials
from shoal.certificates.encoding import PEM
from shoal.certificates.member import Member
from shoal.certificates.tokens import Token
from shoal.errors import PeerError, SettingsError, ShoalError, Untrusted
from shoal.fields import parse_address

LINE_LIMIT = 4 << 20
"""Bytes of an answer: a revocation list is in it."""
QUESTION_LIMIT = 16 << 10
AT_ONCE = 16
"""Callers served at the same time; further ones are turned away."""
PATIENCE_S = 10.0

log = logging.getLogger("shoal")


# --- the authority's side -------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(authority: Authority, address: str) -> AsyncIterator[str]:
    """Answers at HOST:PORT, which it gives, until it is left."""
    host, port = parse_address(address)
    callers = asyncio.Semaphore(AT_ONCE)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.LimitOverrunError):
            if not callers.locked():
                async with callers, asyncio.timeout(PATIENCE_S):
                    await _answer(authority, reader, writer)
        writer.close()

    try:
        server = await asyncio.start_server(
            serve, host, port, ssl=_server_context(authority), limit=QUESTION_LIMIT, ssl_handshake_timeout=PATIENCE_S
        )
    except OSError as error:
        raise SettingsError(f"cannot listen on {address}: {error.strerror or error}") from None
    async with server:
        bound = server.sockets[0].getsockname()
        yield f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"


async def _answer(authority: Authority, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    peer = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    where = writer.get_extra_info("peername")[0]
    try:
        question = json.loads(await reader.readline())
        if not isinstance(question, dict) or not all(isinstance(v, str | bool) for v in question.values()):
            raise SettingsError(f"expected one object of strings, came {str(question)[:80]!r}")
        answer = _decided(authority, question, x509.load_der_x509_certificate(peer) if peer else None, where)
    except (ShoalError, ValueError) as error:
        answer = {"error": str(error) if isinstance(error, ShoalError) else "expected one line of JSON"}
        log.warning("refused %s: %s", where, answer["error"])
    writer.write(json.dumps(answer).encode() + b"\n")
    await writer.drain()


def _decided(
    authority: Authority, question: Mapping[str, Any], peer: x509.Certificate | None, where: str
) -> dict[str, str]:
    if question.get("authority"):
        return {"authority": authority.pem.decode()}
    answer = {}
    if "token" in question:
        request = str(question.get("request", "")).encode()
        encoding.public_key_of(request)  # before the token is spent on it
        granted = tokens.redeem(authority, bytes.fromhex(str(question["token"])))
        certificate = authority.issue(
            request, shoal=granted.shoal, role=granted.role, name=granted.name, days=granted.days
        )
        answer["certificate"] = certificate.decode()
        who = f"{granted.role} {granted.name} of shoal {granted.shoal}"
        log.info("%s has its certificate, asked for from %s", who, where)
    else:
        if peer is None:
            raise SettingsError("expected a token, or a certificate that holds")
        held = Member.of(peer)
        if held.serial in authority.revoked():
            raise SettingsError(f"the certificate of {held.words} is revoked")
        if "request" in question:
            answer["certificate"] = authority.renew(str(question["request"]).encode(), held).decode()
            log.info("%s has its next certificate, asked for from %s", held.words, where)
    return {**answer, "authority": authority.pem.decode(), "crl": authority.crl.decode()}


def _server_context(authority: Authority) -> ssl.SSLContext:
    """Asks callers for a certificate, and takes those without one: they have a token."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=authority.pem.decode())
    context.verify_mode = ssl.CERT_OPTIONAL
    key = encoding.new_key()
    with tempfile.TemporaryDirectory(prefix="shoal-certs-") as made:  # the library reads keys from files alone
        folder = Path(made)
        files.write(folder / "key", encoding.pem_of(key), private=True)
        files.write(folder / "certificate", authority.listener(key.public_key()))
        context.load_cert_chain(folder / "certificate", folder / "key")
    return context


# --- the member's side ----------------------------------------------------------------------------------------------


async def join(token: Token, address: str, folder: Path) -> Member:
    """Makes a key in that folder and gets its first certificate. Raises SettingsError, PeerError, Untrusted."""
    if (folder / "member.pem").exists():
        raise SettingsError(f"{folder} holds a certificate already: `shoal certs renew {folder}` gets the next one")
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # for a certificate that is known by its fingerprint
    blind.minimum_version = ssl.TLSVersion.TLSv1_3
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    found = (await _ask(address, blind, {"authority": True})).get("authority", "").encode()
    try:
        authority = x509.load_pem_x509_certificate(found)
    except ValueError:
        raise PeerError(f"{address} answers, but with no authority's certificate") from None
    if authority.fingerprint(hashes.SHA256()) != token.fingerprint:
        raise Untrusted(f"{address} is not the authority that made this token: somebody else listens there")
    key = encoding.new_key()
    question = {"token": token.secret.hex(), "request": encoding.request_of(key).decode()}
    answer = await _ask(address, _trusting(authority.public_bytes(PEM)), question)
    _check(address, answer, key)
    credentials.store(folder, key=encoding.pem_of(key), **_parts(address, answer))
    return Credentials(folder).member


async def renew(folder: Path, address: str) -> Member:
    """The next certificate for the key in that folder, and the newest revocation list. Raises like `join`."""
    key = encoding.key_of(folder / "member.key")
    answer = await _ask(address, _as_member(folder), {"request": encoding.request_of(key).decode()})
    _check(address, answer, key)
    credentials.store(folder, **_parts(address, answer))
    return Credentials(folder).member


async def update(folder: Path, address: str) -> int:
    """The newest revocation list alone; how many are on it. Raises like `join`."""
    held = Credentials(folder)
    answer = await _ask(address, _as_member(folder), {})
    credentials.store(folder, **_parts(address, {**answer, "certificate": held.chain[1].decode()}))
    return len(Credentials(folder).revoked)


def _as_member(folder: Path) -> ssl.SSLContext:
    """Shows the certificate of that folder. Raises SettingsError for one that the authority would not take."""
    held = Credentials(folder)
    if (why := held.problem(held.member)) is not None:
        raise SettingsError(f"{why}: `shoal certs token` there and `shoal certs join` here, into another folder")
    context = _trusting(held.chain[0])
    context.load_cert_chain(folder / "member.pem", folder / "member.key")
    return context


def _trusting(authority: bytes) -> ssl.SSLContext:
    """Takes the authority's own listener, and no member that poses as it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=authority.decode())
    return context


async def _ask(address: str, context: ssl.SSLContext, question: Mapping[str, Any]) -> dict[str, str]:
    try:
        host, port = parse_address(address)
    except ValueError as expected:
        raise SettingsError(f"address {address!r} must be {expected}") from None
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection(
                host, port, ssl=context, server_hostname=LISTENER_HOST, limit=LINE_LIMIT
            )
            try:
                writer.write(json.dumps(question).encode() + b"\n")
                answer = json.loads(await reader.readline())
            finally:
                writer.transport.abort()
    except ssl.SSLCertVerificationError as error:
        raise Untrusted(f"{address} is not our authority: {error.verify_message}") from None
    except TimeoutError:
        raise PeerError(f"{address} did not answer within {PATIENCE_S:g} s") from None
    except (OSError, ValueError) as error:
        raise PeerError(f"{address} cannot be asked, does `shoal certs serve` run there? {error}") from None
    if not isinstance(answer, dict) or not all(isinstance(value, str) for value in answer.values()):
        raise PeerError(f"{address} answered something else than an authority does")
    if "error" in answer:
        raise PeerError(f"{address} refuses: {answer['error']}")
    return answer


def _check(address: str, answer: Mapping[str, str], key: ec.EllipticCurvePrivateKey) -> None:
    """A certificate for another key would end this member."""
    try:
        public = x509.load_pem_x509_certificate(answer.get("certificate", "").encode()).public_key()
    except ValueError:
        raise PeerError(f"{address} answered without a certificate") from None
    if public != key.public_key():
        raise PeerError(f"{address} answered with a certificate for another key")


def _parts(address: str, answer: Mapping[str, str]) -> dict[str, bytes]:
    """As `credentials.store` takes them, after a look at each: what is stored must be usable."""
    try:
        parts = {name: answer[name].encode() for name in ("authority", "certificate", "crl")}
        authority, certificate = (x509.load_pem_x509_certificate(parts[name]) for name in ("authority", "certificate"))
        encoding.check_signed(certificate, authority)
        encoding.read_crl(parts["crl"], authority)
    except (KeyError, ValueError, SettingsError) as error:
        raise PeerError(f"{address} answered with what cannot be used: {error}") from None
    return parts
