"""Who is talked to and who is not: real gRPC on loopback, with certificates of every kind, on every method."""

import asyncio
import importlib
import pkgutil
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates_kit import DAY, Members, now, tls
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from transport_kit import HandMade, NewNode, Node, joined, nodes

from shoal import v1
from shoal.certificates.member import Member
from shoal.errors import PeerError, Untrusted
from shoal.transport import transport
from shoal.transport.channels import CONTROL, EXCHANGE, HELLO
from shoal.transport.tls import RULES
from shoal.v1 import node_pb2 as pb

pytestmark = pytest.mark.live

REFUSED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED)


def all_methods() -> dict[str, MethodDescriptor]:
    """Of every service that a node serves: all of our own schema, health, reflection."""
    ours = [importlib.import_module(f"shoal.v1.{m.name}") for m in pkgutil.iter_modules(v1.__path__)]
    files = [m.DESCRIPTOR for m in ours if m.__name__.endswith("_pb2")]
    files += [health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR]
    services = [service for file in files for service in file.services_by_name.values()]
    return {f"/{s.full_name}/{m.name}": m for s in services for m in s.methods}


METHODS = all_methods()
WITHOUT_RULE = "/grpc.health.v1.Health/List"
"""Is in the schema, and nobody has written it."""


@pytest.fixture
async def node(caplog: pytest.LogCaptureFixture) -> AsyncIterator[NewNode]:
    async with nodes(caplog, expected="nobody will talk to this process") as make:
        yield make


@pytest.fixture
def members(tmp_path: Path) -> Members:
    return Members(tmp_path)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at all the time."""
    monkeypatch.setattr(transport, "CERTIFICATES_S", 0.02)


async def empty() -> AsyncIterator[bytes]:
    yield b""


def message(method: str, name: str) -> bytes:
    """A Hello of a node of that name, and nothing for the other methods."""
    identity = pb.Identity(node_id=f"{name}-000009", incarnation=1)
    return pb.HelloRequest(hello=pb.Hello(identity=identity)).SerializeToString() if method == HELLO else b""


async def call(channel: Any, method: str, name: str = "b", *, listens: bool = True) -> grpc.StatusCode:
    """How a call of that method ends; OK as soon as it is answered. On a stream who `listens` writes nothing: a write
    that meets a refusal fails before the refusal is there."""
    described = METHODS[method]
    try:
        if described.client_streaming:
            async for _ in channel.stream_stream(method)(*([] if listens else [empty()]), timeout=5):
                break
        elif described.server_streaming:
            async for _ in channel.unary_stream(method)(message(method, name), timeout=5):
                break
        else:
            await channel.unary_unary(method)(message(method, name), timeout=5)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def channel_to(to: Node, folder: Path | None) -> Any:
    """A gRPC channel as any client opens one; without a folder with no certificate."""
    assert to.tls is not None
    member = to.tls.credentials.member
    mine = tls(folder).credentials.chain if folder else (None, None, None)
    server = to.tls.credentials.chain[0]
    credentials = grpc.ssl_channel_credentials(server, mine[2], mine[1])
    options = [("grpc.ssl_target_name_override", member.host), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.secure_channel(to.identity.address, credentials, options)


# --- strangers, on every method -------------------------------------------------------------------------------------


def no_certificate(members: Members, _node: Node) -> Path | None:
    return None


def other_authority(members: Members, _node: Node) -> Path:
    return Members(members.folder / "other").issue("b")


def ended(members: Members, _node: Node) -> Path:
    return members.issue_from_to("b", now() - 2 * DAY, now() - DAY)


def not_yet_valid(members: Members, _node: Node) -> Path:
    return members.issue_from_to("b", now() + DAY, now() + 2 * DAY)


def revoked(members: Members, node: Node) -> Path:
    folder = members.issue("b")
    members.revoke("b", members.folder / "a-default")
    assert node.tls is not None
    node.tls.credentials.refresh()
    return folder


def other_shoal(members: Members, _node: Node) -> Path:
    return members.issue("b", shoal="another")


STRANGERS = [no_certificate, other_authority, ended, not_yet_valid, revoked, other_shoal]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stranger", STRANGERS)
async def test_a_stranger_is_refused_on_every_method(
    members: Members, node: NewNode, stranger: Callable[[Members, Node], Path | None], method: str
) -> None:
    a = await node("a-000001", tls=tls(members.issue("a")))
    async with channel_to(a, stranger(members, a)) as channel:
        assert await call(channel, method) in REFUSED
    async with channel_to(a, members.issue("good")) as channel:
        refused = await call(channel, method, "good", listens=False) in REFUSED
    assert refused == (method == WITHOUT_RULE), "the method is there for members"


@pytest.mark.parametrize("method", METHODS)
async def test_plain_text_is_refused_on_every_method(members: Members, node: NewNode, method: str) -> None:
    a = await node("a-000001", tls=tls(members.issue("a")))
    async with grpc.aio.insecure_channel(a.identity.address) as channel:
        assert await call(channel, method) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("method", METHODS)
async def test_an_observer_reads_and_does_nothing_else(members: Members, node: NewNode, method: str) -> None:
    a = await node("a-000001", tls=tls(members.issue("a")))
    async with channel_to(a, members.issue("eye", role="observer")) as channel:
        refused = await call(channel, method, listens=method.startswith("/shoal.v1.")) in REFUSED
    assert refused == (method.startswith("/shoal.v1.") or method == WITHOUT_RULE)
    if refused:
        _, error = await a.heard.refusals.get()
        assert str(error) == f"the observer eye may not call {method}"


def test_every_method_has_a_rule_and_what_has_none_is_refused(members: Members) -> None:
    assert METHODS.keys() - RULES.keys() == {WITHOUT_RULE}
    assert RULES.keys() < METHODS.keys()
    gate = tls(members.issue("a"))
    for role in ("node", "coordinator", "observer"):
        member = gate.credentials.member._replace(role=role)
        with pytest.raises(Untrusted, match=r"may not call /shoal\.v1\.NodeService/New"):
            gate.may_call("/shoal.v1.NodeService/New", member)


# --- what is said, and counted --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stranger", "complaint"),
    [
        (revoked, "the certificate of node b of shoal default is revoked"),
        (other_shoal, "its certificate is for shoal another, this is shoal default"),
    ],
)
async def test_both_ends_learn_why(members: Members, node: NewNode, stranger: Any, complaint: str) -> None:
    a = await node("a-000001", tls=tls(members.issue("a")))
    b = await node("b-000002", tls=tls(stranger(members, a)))
    if stranger is revoked:  # which b has not heard of
        with pytest.raises(Untrusted, match=f"the node at .* refuses: {complaint}"):
            await b.transport.greet(a.identity.address)
        _, error = await a.heard.refusals.get()
        assert isinstance(error, Untrusted)
        assert str(error) == complaint
    with pytest.raises(Untrusted, match=complaint):
        await a.transport.greet(b.identity.address)


@pytest.mark.parametrize(
    ("stranger", "of_them", "of_us"),
    [
        (other_authority, "self-signed|unable to get local issuer|signature failure", "does not hold"),
        (ended, "certificate has expired", "does not take our certificate, of node b of shoal default"),
        (not_yet_valid, "certificate is not yet valid", "does not take our certificate, of node b of shoal default"),
    ],
)
async def test_who_calls_learns_why_no_handshake_comes_about(
    members: Members, node: NewNode, stranger: Any, of_them: str, of_us: str
) -> None:
    a = await node("a-000001", tls=tls(members.issue("a")))
    b = await node("b-000002", tls=tls(stranger(members, a)))
    with pytest.raises(Untrusted, match=f"the certificate of {b.identity.address} does not hold: .*({of_them})"):
        await a.transport.greet(b.identity.address)
    with pytest.raises(Untrusted, match=of_us):
        await b.transport.greet(a.identity.address)


async def test_tls_and_plain_text_never_meet(members: Members, node: NewNode) -> None:
    safe, plain = await node("a-000001", tls=tls(members.issue("a"))), await node("b-000002")
    with pytest.raises(PeerError, match=r"speaks no TLSv1\.3.*was it started with --tls|cannot be reached"):
        await safe.transport.greet(plain.identity.address)
    with pytest.raises(PeerError, match=f"no Hello from {safe.identity.address}"):
        await plain.transport.greet(safe.identity.address)
    safe.transport.connect(plain.identity)  # a member's word for who listens there is not enough
    silent = asyncio.ensure_future(safe.heard.ups.get())
    with pytest.raises(PeerError):
        await safe.transport.greet(plain.identity.address)
    assert not silent.done()
    silent.cancel()
    safe.transport.forget(plain.id, "the test is over")


async def test_an_observer_cannot_pass_for_a_node(members: Members) -> None:
    a = tls(members.issue("a"))
    folder = members.issue("eye", role="observer")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "member.pem", folder / "member.key")
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        with pytest.raises(Untrusted, match=r"unsuitable certificate purpose|unsupported certificate purpose"):
            await a.reach("{}:{}".format(*server.sockets[0].getsockname()))


# --- who one says one is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node_id", ["a-000009", "b", "b-x-000001", "bb-000001", "B-000001"])
async def test_a_node_id_that_is_not_the_certificates_is_refused_on_both_ends(
    members: Members, node: NewNode, node_id: str
) -> None:
    a = await node("a-000001", tls=tls(members.issue("a")))
    liar = await node(node_id, tls=tls(members.issue("b")))
    with pytest.raises(Untrusted, match=rf"refuses: {node_id} has the certificate of node b of shoal default, whose"):
        await liar.transport.greet(a.identity.address)
    assert isinstance((await a.heard.refusals.get())[1], Untrusted)
    with pytest.raises(Untrusted, match=rf"{liar.identity.address}: {node_id} has the certificate of node b"):
        await a.transport.greet(liar.identity.address)


async def test_a_node_is_no_coordinator(members: Members, node: NewNode) -> None:
    a = await node("a-000001", tls=tls(members.issue("a")))
    liar = await node("b-000002", tls=tls(members.issue("b")))
    liar.identity.role = pb.ROLE_COORDINATOR
    with pytest.raises(Untrusted, match="b-000002 says that it is a coordinator; its certificate: node b"):
        await a.transport.greet(liar.identity.address)


async def test_streams_in_the_name_of_another_are_refused(members: Members, node: NewNode) -> None:
    b = await node("b-000002", tls=tls(members.issue("b")))
    a = await node("a-000001", tls=tls(members.issue("a")))
    await a.transport.greet(b.identity.address)
    async with HandMade(b, node_id="a-000001") as thief:
        await thief.channel.close()
        thief.channel = channel_to(b, members.issue("c"))
        for method in (CONTROL, EXCHANGE):
            with pytest.raises(grpc.RpcError, match="a-000001 is not node c of shoal default"):
                await thief.open(method)


async def test_a_peer_at_anothers_address_is_not_connected_to(members: Members, node: NewNode) -> None:
    a = await node("a-000001", tls=tls(members.issue("a")))
    b = await node("b-000002", tls=tls(members.issue("b")))
    hello = await a.transport.greet(b.identity.address)
    moved = pb.Identity()
    moved.CopyFrom(hello.identity)
    moved.node_id = "c-000003"
    a.transport.connect(moved)
    peer, error = await a.heard.refusals.get()
    assert peer == "c-000003"
    assert "c-000003 has the certificate of node b" in str(error)
    a.transport.forget("c-000003", "the test is over")


async def test_only_the_certificate_that_was_seen_is_called(members: Members, node: NewNode) -> None:
    a, b = tls(members.issue("a")), tls(members.issue("b"))
    server = await node("b-000002", tls=b)
    async with channel_to(server, a.credentials.folder) as channel:
        assert await call(channel, HELLO, "a") is grpc.StatusCode.OK
    members.renew(b.credentials.folder)  # the channel still asks for the old one
    before = b.credentials.member
    await until(lambda: b.credentials.member.serial != before.serial)
    options = [("grpc.ssl_target_name_override", before.host), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(server.identity.address, a.channel_credentials(), options) as channel:
        assert await call(channel, HELLO) is grpc.StatusCode.UNAVAILABLE


# --- over time ------------------------------------------------------------------------------------------------------


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("aware", ["a", "b"])
async def test_messages_travel_until_either_end_hears_that_the_other_is_revoked(
    members: Members, node: NewNode, aware: str
) -> None:
    """The lower id has called: each end checks the other."""
    a = await node("a-000001", elements=2, tls=tls(members.issue("a")))
    b = await node("b-000002", elements=2, tls=tls(members.issue("b")))
    at_a, _ = await joined(a, b)
    a.send(b, at_a, 1, b"12345678")
    assert (await b.heard.messages.get()).vector == b"12345678"
    ours, other = (a, b) if aware == "a" else (b, a)
    name = other.id.partition("-")[0]
    members.revoke(name, members.folder / f"{aware}-default")
    complaint = f"the certificate of node {name} of shoal default is revoked"
    assert await ours.down() == complaint
    await other.down()
    assert str((await ours.heard.refusals.get())[1]) == complaint
    with pytest.raises(Untrusted, match=complaint):
        await other.transport.greet(ours.identity.address)
    with pytest.raises(Untrusted, match=complaint):
        await ours.transport.greet(other.identity.address)


async def test_a_renewed_certificate_serves_without_a_new_start(members: Members, node: NewNode) -> None:
    a = await node("a-000001", tls=tls(members.issue("a")))
    b = await node("b-000002", tls=tls(members.issue("b")))
    await joined(a, b)
    assert b.tls is not None
    assert a.tls is not None
    first = b.tls.credentials.member
    members.renew(b.tls.credentials.folder)
    await until(lambda: b.tls.credentials.member.serial != first.serial)
    b.transport.reset(a.id, "to see the next connection")
    await a.down()
    await a.up()
    assert (await a.tls.reach(b.identity.address)).serial == b.tls.credentials.member.serial
    seen = a.transport._peers.live[b.id].member
    assert seen is not None
    assert seen.serial == b.tls.credentials.member.serial


async def test_a_connection_does_not_outlive_the_certificate(members: Members, node: NewNode) -> None:
    a = await node("a-000001", tls=tls(members.issue("a")))
    b = await node("b-000002", tls=tls(members.issue("b")))
    await joined(a, b)
    connection = a.transport._peers.live[b.id]
    assert connection.member is not None
    connection.member = connection.member._replace(ends=now())  # as if time had passed
    assert "ended at" in await a.down()
    await a.up()


# --- versions -------------------------------------------------------------------------------------------------------


def test_a_call_over_an_older_version_is_refused(members: Members) -> None:
    class Call:
        """What gRPC says of a call over TLS 1.2."""

        def auth_context(self) -> dict[str, list[bytes]]:
            return {"ssl_tls_version": [b"TLSv1.2"]}

        def peer(self) -> str:
            return "ipv4:127.0.0.1:1"

    with pytest.raises(Untrusted, match=r"ipv4:127\.0\.0\.1:1 speaks TLSv1\.2, expected TLSv1\.3"):
        tls(members.issue("a")).caller(Call())


async def test_health_answers_an_observer(members: Members, node: NewNode) -> None:
    a = await node("a-000001", tls=tls(members.issue("a")))
    async with channel_to(a, members.issue("eye", role="observer")) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_members_are_compared_by_what_their_certificates_say(members: Members) -> None:
    first = tls(members.issue("a")).credentials.member
    members.renew(members.folder / "a-default")
    second = tls(members.folder / "a-default").credentials.member
    assert isinstance(second, Member)
    assert (first.uri, first.host) == (second.uri, first.host)
    assert first.host != second.host
