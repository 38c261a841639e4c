"""`shoal health`: whether a node or coordinator answers on its gRPC port, for whoever watches over processes."""

import asyncio
import ipaddress
import json
from pathlib import Path
from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2

from shoal.cli.options import with_settings
from shoal.discovery import join
from shoal.errors import PeerError, UserError
from shoal.fields import parse_address
from shoal.process import tls_of
from shoal.settings import Settings
from shoal.transport import channels
from shoal.whereabouts import placed

TIMEOUT_S = 5.0
CHECK = "/grpc.health.v1.Health/Check"
SERVING = health_pb2.HealthCheckResponse.SERVING


@with_settings(only=("state_dir", "name", "tls", "shoal"))
def command(
    settings: Settings,
    address: Annotated[
        str, typer.Argument(metavar="[ADDR]", help="HOST:PORT of gRPC; without it, what runs on --state-dir.")
    ] = "",
) -> None:
    """Ask a node or a coordinator whether it serves (grpc.health.v1).

    The exit code is 0 if it does, 1 if it does not, 2 if nothing runs on that folder.
    """
    where = address or of_folder(Path(placed(settings).state_dir))
    asyncio.run(check(where, settings))
    typer.echo(f"{where} serves")


def of_folder(folder: Path) -> str:
    """Where whoever runs on that state folder can be dialled from this machine. Raises UserError when nobody does."""
    try:
        host, port = parse_address(json.loads((folder / "node.json").read_text())["address"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"nothing runs on {folder}; give its --state-dir, or HOST:PORT") from None
    try:
        everywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        everywhere = False
    return join("::1" if everywhere and ":" in host else "127.0.0.1" if everywhere else host, port)


async def check(address: str, settings: Settings) -> None:
    """Returns when whoever listens there serves. Raises PeerError, saying what came instead."""
    tls = tls_of(settings)
    to = None if tls is None else await tls.reach(address)
    async with channels.channel(address, settings.heartbeat_s, tls, to) as channel:
        ask = channel.unary_unary(
            CHECK,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = await ask(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise PeerError(f"{address} does not serve: {error.details() or error.code().name}") from None
    if answer.status != SERVING:
        raise PeerError(f"{address} does not serve: {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)}")
