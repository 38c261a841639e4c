"""Mutual TLS: who is at the other end, and what it may call. `certificates` says whose certificates hold.

Both ends look at each other's certificate before anything of a run is said.

- Who is called sees its caller's with every call (`Gate`): signed by our authority, which gRPC's handshake has checked;
  in force; of our shoal; its role allowed to call this method.
- Who calls looks first (`Tls.reach`), for gRPC shows its clients no certificate: a TLS handshake of its own shows who
  listens there, and proves that it has the key. The gRPC channel then takes no other than that very certificate: each
  has a DNS name made of its serial number, which no other has. An address need not be known to the authority.

TLS 1.3 alone. Python's gRPC cannot demand it, so it is demanded around it: `reach` offers nothing older, a call over
something older is refused, and TLS 1.2 is left without a cipher for the keys that our authority signs (`__init__.py`).

Imported where there is TLS alone: what it needs takes 8 MiB.
"""

import asyncio
import inspect
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from cryptography import x509

from shoal.certificates.credentials import Credentials
from shoal.certificates.member import Member
from shoal.errors import Unreached, Untrusted
from shoal.fields import parse_address
from shoal.transport.channels import host_of
from shoal.v1 import node_pb2 as pb

REACH_TIMEOUT_S = 5.0
VERSION = "TLSv1.3"

TRAINING = frozenset({"node", "coordinator"})
ANYBODY = TRAINING | {"observer"}
_NODE = pb.DESCRIPTOR.services_by_name["NodeService"].full_name
RULES = {
    f"/{_NODE}/Hello": TRAINING,
    f"/{_NODE}/Control": TRAINING,
    f"/{_NODE}/Exchange": TRAINING,
    f"/{_NODE}/DialBack": TRAINING,
    "/grpc.health.v1.Health/Check": ANYBODY,
    "/grpc.health.v1.Health/Watch": ANYBODY,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": ANYBODY,
}
"""Method -> the roles that may call it. What is not here nobody may call, such as Health/List, which gRPC's servicer
announces and lacks."""


class Tls:
    """The TLS of one process."""

    def __init__(self, credentials: Credentials) -> None:
        self.credentials = credentials

    @property
    def name(self) -> str:
        """Of this member."""
        return self.credentials.member.name

    @property
    def ends(self) -> float:
        """When our certificate does, in unix time."""
        return self.credentials.member.ends.timestamp()

    def server_credentials(self) -> Any:
        """For a port that takes callers with a certificate of our authority alone; read anew for each handshake."""
        return grpc.dynamic_ssl_server_credentials(self._configuration(), self._configuration, True)

    def channel_credentials(self) -> Any:
        """For a channel, with our certificate as it is now."""
        authority, certificate, key = self.credentials.chain
        return grpc.ssl_channel_credentials(authority, key, certificate)

    def _configuration(self) -> Any:
        authority, certificate, key = self.credentials.chain
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authority)

    def gate(self, refused: Callable[[str, Untrusted], None]) -> "Gate":
        """For a server."""
        return Gate(self, refused)

    def caller(self, context: Any) -> Member:
        """Whose call that is. Raises Untrusted, with the reason."""
        found = context.auth_context()
        version = found.get("ssl_tls_version", [b"no TLS"])[0].decode(errors="replace")
        if version != VERSION:
            raise Untrusted(f"{context.peer()} speaks {version}, expected {VERSION}")
        return self._checked(Member.of(x509.load_pem_x509_certificate(found["x509_pem_cert"][0])))

    def may_call(self, method: str, member: Member) -> None:
        """Raises Untrusted unless its role may."""
        if member.role not in RULES.get(method, ()):
            raise Untrusted(f"the {member.role} {member.name} may not call {method}")

    async def reach(self, address: str) -> Member:
        """Who listens there, by a certificate that holds. Raises Untrusted, or Unreached when nobody answers so."""
        try:
            async with asyncio.timeout(REACH_TIMEOUT_S):
                der = await self._look(*parse_address(address))
        except ssl.SSLCertVerificationError as error:
            raise Untrusted(f"the certificate of {address} does not hold: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise Unreached(
                f"{address} speaks no {VERSION}: {error.reason or error}; was it started with --tls?"
            ) from None
        except TimeoutError:
            raise Unreached(f"{address} did not answer within {REACH_TIMEOUT_S:g} s") from None
        except (OSError, ValueError) as error:
            raise Unreached(f"{address} cannot be reached: {error}") from None
        if der is None:
            mine = self.credentials.member
            remedy = "look at both with `shoal certs show`"
            raise Untrusted(f"{address} does not take our certificate, of {mine.words}; {remedy}")
        member = self._checked(Member.of(x509.load_der_x509_certificate(der)))
        if member.role not in TRAINING:
            raise Untrusted(f"{address} has the certificate of an {member.role}, which may not be called")
        return member

    async def _look(self, host: str, port: int) -> bytes | None:
        """The certificate of who listens there (DER); None when it hangs up on seeing ours, which a client of TLS 1.3
        learns only when it reads: an HTTP/2 server that goes on says its settings first."""
        reader, writer = await asyncio.open_connection(host, port, ssl=self.credentials.client, server_hostname="")
        try:
            der: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            return der if await reader.read(1) else None
        except ConnectionError:
            return None
        finally:
            writer.transport.abort()

    def _checked(self, member: Member) -> Member:
        if (why := self.credentials.problem(member)) is not None:
            raise Untrusted(why)
        return member


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets a call through whose caller may make it. `refused` hears of the others: who, and why."""

    def __init__(self, tls: Tls, refused: Callable[[str, Untrusted], None]) -> None:
        self._tls, self._refused = tls, refused

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """The handler of a method, behind the gate."""
        handler = await continuation(details)
        if handler is None:
            return None  # gRPC answers that there is no such method
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            if (behaviour := getattr(handler, kind)) is not None:
                return handler._replace(**{kind: self._gated(details.method, behaviour)})
        raise AssertionError(f"{details.method} has no behaviour")

    def _gated(self, method: str, behaviour: Any) -> Any:
        if inspect.isasyncgenfunction(behaviour):

            async def answers(request: Any, context: Any) -> AsyncIterator[Any]:
                await self._check(method, context)
                async for answer in behaviour(request, context):
                    yield answer

            return answers

        async def answer(request: Any, context: Any) -> Any:
            await self._check(method, context)
            return await behaviour(request, context)

        return answer

    async def _check(self, method: str, context: Any) -> None:
        try:
            self._tls.may_call(method, self._tls.caller(context))
        except Untrusted as error:
            self._refused(host_of(context), error)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
