"""Who gets in: listening, Hello, and the streams of those who did not say it. Real gRPC on loopback."""

import asyncio
import json
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from transport_kit import HandMade, NewNode, Node, nodes

from shoal.documents import differing_keys
from shoal.errors import Mismatch, PeerError, PortInUse, SettingsError
from shoal.transport import channels, dialler, server
from shoal.transport.channels import CONTROL, EXCHANGE, Ends
from shoal.v1 import node_pb2 as pb

pytestmark = pytest.mark.live


@pytest.fixture
async def node(caplog: pytest.LogCaptureFixture) -> AsyncIterator[NewNode]:
    async with nodes(caplog) as make:
        yield make


class TestListening:
    async def test_a_port_in_use_is_an_error_with_a_remedy(self, node: NewNode) -> None:
        a = await node("a")
        with pytest.raises(PortInUse, match=f"listens on {a.identity.address} already; .* another port"):
            await Node("b").transport.listen(a.identity.address)

    @pytest.mark.parametrize("address", ["192.0.2.1:0", "no.such.host.invalid:0", "nonsense"])
    async def test_an_address_that_is_not_ours_is_a_settings_error(self, address: str) -> None:
        with pytest.raises(SettingsError, match=address):
            await Node("b").transport.listen(address)

    async def test_connections_beyond_the_limit_are_closed_at_once(
        self, node: NewNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(channels, "CONNECTIONS_LIMIT", 3)
        a = await node("a")
        host, port = a.identity.address.split(":")
        opened = [await asyncio.open_connection(host, int(port)) for _ in range(5)]
        said = [await reader.read(1) for reader, _ in opened]
        for _, writer in opened:
            writer.transport.abort()
        assert sorted(said) == [b"", b"", b"\0", b"\0", b"\0"], "three hear the server's settings"

    async def test_health_and_reflection_answer(self, node: NewNode) -> None:
        a = await node("a")
        async with grpc.aio.insecure_channel(a.identity.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for service in ("", "shoal.v1.NodeService"):
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            info = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
            names = {service.name async for reply in info for service in reply.list_services_response.service}
        assert names >= {"shoal.v1.NodeService", "grpc.health.v1.Health"}


class TestHello:
    async def test_each_side_learns_the_others_hello(self, node: NewNode) -> None:
        judged: list[str] = []
        a, b = (
            await node("a", elements=3),
            await node("b", elements=3, judge=lambda h: judged.append(h.identity.address)),
        )
        hello = await a.transport.greet(b.identity.address)
        assert hello == b.hello()
        assert judged == [a.identity.address]

    async def test_a_refusal_names_the_keys_that_differ_on_both_sides(self, node: NewNode) -> None:
        def judge(hello: pb.Hello) -> str | None:
            keys = differing_keys({"lr": 0.1, "batch": 16}, json.loads(hello.run_document))
            return "run settings differ: " + "; ".join(keys) if keys else None

        a = await node("a", document='{"lr": 0.2, "batch": 16}')
        b = await node("b", judge=judge)
        with pytest.raises(
            Mismatch, match=r"127\.0\.0\.1:\d+ refuses: run settings differ: lr: ours 0\.1, theirs 0\.2$"
        ):
            await a.transport.greet(b.identity.address)
        peer, error = await b.heard.refusals.get()
        assert peer == "a"
        assert "lr: ours 0.1, theirs 0.2" in str(error)

    async def test_the_caller_judges_the_answer_too(self, node: NewNode) -> None:
        a, b = await node("a", judge=lambda hello: "shoal: ours x, theirs y"), await node("b")
        with pytest.raises(Mismatch, match=r"b at 127\.0\.0\.1:\d+ does not fit: shoal: ours x, theirs y"):
            await a.transport.greet(b.identity.address)

    async def test_a_very_long_reason_still_arrives(self, node: NewNode) -> None:
        a, b = await node("a"), await node("b", judge=lambda hello: "é" * 10_000)
        with pytest.raises(Mismatch, match="é" * 600):
            await a.transport.greet(b.identity.address)

    async def test_a_port_without_listener_is_an_error_that_names_it(self, node: NewNode) -> None:
        a, b = await node("a"), await node("b")
        address = b.identity.address
        await b.close()
        with pytest.raises(PeerError, match=f"no Hello from {address}"):
            await a.transport.greet(address)

    async def test_a_listener_that_never_answers_costs_a_bounded_time(
        self, node: NewNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dialler, "HELLO_TIMEOUT_S", 0.1)
        a = await node("a")
        silent = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        host, port = silent.sockets[0].getsockname()
        with pytest.raises(PeerError, match=f"no Hello from {host}:{port}"):
            await a.transport.greet(f"{host}:{port}")
        silent.close()

    @pytest.mark.parametrize("address", ["", "nowhere", "host:port", "unix:/tmp/socket", "127.0.0.1:99999"])
    async def test_what_is_no_address_is_an_error_that_quotes_it(self, node: NewNode, address: str) -> None:
        a = await node("a")
        with pytest.raises(PeerError, match="must be HOST:PORT"):
            await a.transport.greet(address)

    async def test_a_node_that_hears_itself_refuses_without_an_alarm(self, node: NewNode) -> None:
        a = await node("a")
        with pytest.raises(Mismatch, match="a is this node itself"):
            await a.transport.greet(a.identity.address)
        assert a.heard.refusals.empty()

    async def test_a_copied_state_folder_is_found_out(self, node: NewNode) -> None:
        a, twin = await node("a", incarnation=1), await node("a", incarnation=2)
        with pytest.raises(Mismatch, match="two nodes have the id a: one runs on a copy of the other's state folder"):
            await twin.transport.greet(a.identity.address)

    async def test_an_incarnation_that_is_over_is_refused(self, node: NewNode) -> None:
        old, new, b = await node("a", incarnation=1), await node("a", incarnation=2), await node("b")
        await new.transport.greet(b.identity.address)
        with pytest.raises(Mismatch, match="a is incarnation 1, but 2 was here already"):
            await old.transport.greet(b.identity.address)

    @pytest.mark.parametrize("node_id", ["", "a/1", "a b", "é-123456", "x" * 129])
    async def test_a_node_id_that_could_not_travel_is_refused(self, node: NewNode, node_id: str) -> None:
        a, b = await node(node_id), await node("b")
        with pytest.raises(Mismatch, match=r"node id .* must be"):
            await a.transport.greet(b.identity.address)


class TestStrangers:
    @pytest.mark.parametrize("method", [CONTROL, EXCHANGE])
    async def test_streams_without_a_hello_are_refused(self, node: NewNode, method: str) -> None:
        b = await node("b")
        async with HandMade(b) as a:
            with pytest.raises(grpc.RpcError, match="'a' has not said Hello to b, or was refused"):
                await a.open(method)

    async def test_streams_after_a_refusal_are_refused(self, node: NewNode) -> None:
        b = await node("b", judge=lambda hello: "not you")
        async with HandMade(b) as a:
            with pytest.raises(grpc.RpcError, match="not you"):
                await a.hello()
            with pytest.raises(grpc.RpcError, match="was refused"):
                await a.open(CONTROL)

    @pytest.mark.parametrize(
        ("ends", "complaint"),
        [
            (Ends("a", 2, "b", 1, 1), "a said Hello as incarnation 1, this is 2"),
            (Ends("a", 1, "b", 7, 1), "this is b, incarnation 1"),
            (Ends("a", 1, "c", 1, 1), "this is b, incarnation 1"),
            (Ends("z", 1, "b", 1, 1), "'z' has not said Hello"),
            (Ends("", 1, "b", 1, 1), "metadata does not say which connection this is"),
            (Ends("a", 10**30, "b", 1, 1), "metadata does not say which connection this is"),
        ],
    )
    async def test_metadata_that_does_not_fit_the_hello_is_refused(
        self, node: NewNode, ends: Ends, complaint: str
    ) -> None:
        b = await node("b")
        async with HandMade(b) as a:
            await a.hello()
            with pytest.raises(grpc.RpcError, match=complaint):
                await a.open(CONTROL, ends)

    async def test_streams_without_metadata_are_refused(self, node: NewNode) -> None:
        b = await node("b")
        async with grpc.aio.insecure_channel(b.identity.address) as channel:
            call = channel.stream_stream(CONTROL)()
            assert (await call.code()) is grpc.StatusCode.INVALID_ARGUMENT

    async def test_a_higher_id_opens_the_streams_where_none_stand_and_not_beside_others(self, node: NewNode) -> None:
        b = await node("b")
        async with HandMade(b, node_id="c") as c:
            await c.connect()
            await b.up()
            with pytest.raises(grpc.RpcError, match="c is connected already, and b has the lower node id"):
                await c.open(CONTROL, c.ends._replace(number=2))
            assert b.heard.downs.empty(), "the one that stands is left alone"
        await b.down()

    async def test_both_streams_must_belong_to_one_connection(self, node: NewNode) -> None:
        b = await node("b")
        async with HandMade(b) as a:
            await a.hello()
            with pytest.raises(grpc.RpcError, match="open Control first"):
                await a.open(EXCHANGE)
            await a.open(CONTROL)
            with pytest.raises(grpc.RpcError, match="open Control first, with the same metadata"):
                await a.open(EXCHANGE, a.ends._replace(number=2))
            with pytest.raises(grpc.RpcError, match="connection 1 has its Control stream"):
                await a.open(CONTROL)
            await a.open(EXCHANGE)
            await b.up()

    async def test_a_control_stream_alone_does_not_wait_for_ever(
        self, node: NewNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server, "PAIR_TIMEOUT_S", 0.05)
        b = await node("b")
        async with HandMade(b) as a:
            await a.hello()
            control = await a.open(CONTROL)
            assert (await control.code(), await control.details()) == (
                grpc.StatusCode.DEADLINE_EXCEEDED,
                "no Exchange stream came within 0.05 s of Control",
            )
        assert b.heard.ups.empty()

    async def test_a_second_connection_of_one_peer_takes_the_place_of_the_first(self, node: NewNode) -> None:
        b = await node("b")
        async with HandMade(b) as first, HandMade(b) as second:
            await first.connect()
            second.ends = first.ends._replace(number=2)
            await second.connect()
            assert (await first.exchange.code(), await first.exchange.details()) == (
                grpc.StatusCode.ABORTED,
                "replaced by a new connection",
            )
        await b.heard.downs.get()
        await b.heard.downs.get()
        assert [what for what, _, _ in b.heard.history] == ["up", "down", "up", "down"]
