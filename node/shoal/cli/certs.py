"""`shoal certs`: an authority for a shoal, and certificates for its members."""

import asyncio
import datetime
from pathlib import Path
from typing import Annotated

import typer

from shoal import logs
from shoal.certificates import credentials, encoding, files, joining, tokens
from shoal.certificates.authority import MEMBER_DAYS, Authority
from shoal.certificates.credentials import Credentials
from shoal.certificates.member import ROLES, Member
from shoal.errors import SettingsError
from shoal.settings import field

command = typer.Typer(
    help="Make an authority, and certificates for nodes, coordinators and observers.", add_completion=False
)

CA = Path("shoal-ca")
TLS = Path("shoal-tls")
MINUTES = 60

CaDir = Annotated[Path, typer.Option("--ca", metavar="DIR", help="Folder of the authority.")]
TlsDir = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the certificate, as --tls has it.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the node; each machine has its own.")]
Role = Annotated[
    str, typer.Option("--role", metavar="|".join(ROLES), help="; ".join(f"{k}: {v}" for k, v in ROLES.items()) + ".")
]
ShoalName = Annotated[str, typer.Option("--shoal", metavar="TEXT", help="Shoal for which the certificate holds.")]
Days = Annotated[int, typer.Option("--days", metavar="N", help="Days for which the certificate holds.")]
Address = Annotated[str, typer.Argument(metavar="ADDRESS", help="HOST:PORT where `shoal certs serve` runs.")]

SHOAL = str(field("shoal").default)


@command.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; keep it on one safe machine.")] = CA,
) -> None:
    """Make an authority. Whoever has its folder can make members of the shoal."""
    authority = Authority.make(folder)
    typer.echo(f"{folder}: an authority, fingerprint {authority.fingerprint.hex()}")
    typer.echo("Its folder stays here; ca.key makes members of whoever has it.")


@command.command()
def issue(
    name: Name,
    role: Role = "node",
    shoal: ShoalName = SHOAL,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder to make. Default: NAME.")] = None,
    ca: CaDir = CA,
    days: Days = MEMBER_DAYS,
) -> None:
    """Make key and certificate into a folder to carry to the machine. `token` and `join` need no key to travel."""
    folder = out or Path(name)
    if any((folder / file).exists() for file in credentials.FILES):
        raise SettingsError(f"{folder} holds a certificate already; give another folder with --out")
    authority, key = Authority.of(ca), encoding.new_key()
    files.private_folder(folder)
    certificate = authority.issue(encoding.request_of(key), shoal=shoal, role=role, name=name, days=days)
    credentials.store(
        folder,
        authority=authority.pem,
        certificate=certificate,
        crl=authority.crl,
        key=encoding.pem_of(key),
    )
    typer.echo(_made(folder, Credentials(folder).member))


@command.command()
def token(
    name: Name,
    role: Role = "node",
    shoal: ShoalName = SHOAL,
    ca: CaDir = CA,
    days: Days = MEMBER_DAYS,
    minutes: Annotated[int, typer.Option("--minutes", metavar="N", help="Minutes for which it holds.")] = MINUTES,
) -> None:
    """Print a token that is good for one certificate, while `shoal certs serve` runs. Tell it to nobody else."""
    typer.echo(str(tokens.promise(Authority.of(ca), shoal, role, name, days, minutes)))


@command.command()
def serve(
    listen: Annotated[str, typer.Option("--listen", metavar="HOST:PORT", help="Where.")] = "127.0.0.1:7448",
    ca: CaDir = CA,
) -> int:
    """Answer `join`, `renew` and `update` until Ctrl-C, over TLS; nothing is given without a token or a certificate."""
    logs.configure("human", "info")
    return asyncio.run(_serve(Authority.of(ca), listen))


async def _serve(authority: Authority, listen: str) -> int:
    async with joining.serving(authority, listen) as address:
        typer.echo(f"authority {authority.folder} on {address}, until Ctrl-C")
        await asyncio.get_running_loop().create_future()
    return 0


@command.command()
def join(
    secret: Annotated[str, typer.Argument(metavar="TOKEN", help="What `shoal certs token` printed.")],
    address: Address,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make.")] = TLS,
) -> None:
    """Make a key here and get its certificate. The key never leaves this machine."""
    typer.echo(_made(out, asyncio.run(joining.join(tokens.Token.read(secret), address, out))))


@command.command()
def renew(
    folder: TlsDir = TLS,
    at: Annotated[str | None, typer.Option("--at", metavar="ADDRESS", help="Where `shoal certs serve` runs.")] = None,
    ca: CaDir = CA,
) -> None:
    """Get the next certificate for the key in a folder, and the newest revocation list. Running nodes take them up."""
    if at is not None:
        typer.echo(_made(folder, asyncio.run(joining.renew(folder, at))))
        return
    authority, held = Authority.of(ca), Credentials(folder)
    if held.chain[0] != authority.pem:
        raise SettingsError(f"{folder} is not of the authority {ca}; give the other with --ca")
    request = encoding.request_of(encoding.key_of(folder / "member.key"))
    certificate = authority.renew(request, held.member)
    credentials.store(folder, authority=authority.pem, certificate=certificate, crl=authority.crl)
    typer.echo(_made(folder, Credentials(folder).member))


@command.command()
def update(address: Address, folder: TlsDir = TLS) -> None:
    """Get the newest revocation list."""
    typer.echo(f"{folder}/crl.pem: {asyncio.run(joining.update(folder, address))} certificates revoked")


@command.command()
def revoke(name: Name, shoal: ShoalName = SHOAL, ca: CaDir = CA) -> None:
    """Put a member's certificates on the list of those that hold no more."""
    for member in Authority.of(ca).revoke(shoal, name):
        typer.echo(f"revoked: {member.words}, number {member.serial:x}")
    typer.echo(f"Copy {ca}/crl.pem into the folder of each other member, or run `shoal certs update ADDRESS` there:")
    typer.echo("running nodes read it within seconds, close their connections to it, and take no other from it.")


@command.command()
def show(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a certificate, or of an authority.")] = TLS,
) -> None:
    """Say who a certificate is for, in which role, and until when; of an authority, all that it has issued."""
    if not (folder / "ca.key").exists():
        held = Credentials(folder)
        typer.echo(_shown(held.member, held.problem(held.member) or "in force"))
        return
    authority = Authority.of(folder)
    revoked, now = authority.revoked(), datetime.datetime.now(datetime.UTC)
    ends = f"{authority.certificate.not_valid_after_utc:%Y-%m-%d}"
    typer.echo(f"authority {folder}, until {ends}, fingerprint {authority.fingerprint.hex()}")
    for member in authority.issued():
        state = "revoked" if member.serial in revoked else "ended" if member.ends <= now else "in force"
        typer.echo(_shown(member, state))


def _shown(member: Member, state: str) -> str:
    span = f"{member.begins:%Y-%m-%d %H:%M} to {member.ends:%Y-%m-%d %H:%M} UTC"
    return f"{member.words}: {state}\n  {span}, number {member.serial:x}\n  fingerprint {member.fingerprint}"


def _made(folder: Path, member: Member) -> str:
    verb = "coordinator" if member.role == "coordinator" else "node"
    use = f"; shoal {verb} --shoal {member.shoal} --tls {folder}" if member.role != "observer" else ""
    return f"{folder}: {member.words}, until {member.ends:%Y-%m-%d}{use}"
