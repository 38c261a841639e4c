"""Who a caller or a called one may say it is, by its certificate."""

from typing import TYPE_CHECKING

from shoal.v1 import node_pb2 as pb

if TYPE_CHECKING:
    from shoal.certificates.member import Member

ROLE_WORDS = {pb.ROLE_UNSPECIFIED: "node", pb.ROLE_NODE: "node", pb.ROLE_COORDINATOR: "coordinator"}


def misfit(identity: pb.Identity, member: "Member") -> str | None:
    """Why a certificate does not allow that identity; None if it does. A node id is the name, a dash and a last
    part without one, so an id cannot be taken by who has another name's certificate."""
    if misnamed(identity.node_id, member):
        return f"{identity.node_id} has the certificate of {member.words}, whose node id begins with {member.name}-"
    if ROLE_WORDS.get(identity.role) != member.role:
        return f"{identity.node_id} says that it is a {ROLE_WORDS.get(identity.role)}; its certificate: {member.words}"
    return None


def misnamed(node_id: str, member: "Member") -> bool:
    """Whether that node id is another's."""
    return node_id.rpartition("-")[0] != member.name
