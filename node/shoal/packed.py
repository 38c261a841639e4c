"""How the vectors that pass through a daemon are packed, as far as their headers tell. For the metrics alone."""

from shoal.v1 import node_pb2 as pb

OTHER = "other"
"""What is neither a model nor a part of one in numbers or signs: enrolments, hashes."""
CHOSEN = (pb.MESSAGE_KIND_GRANT, pb.MESSAGE_KIND_ACCEPT)
AVERAGES = (pb.MESSAGE_KIND_ACCEPT, pb.MESSAGE_KIND_VALUES)
NUMBERS = {pb.DTYPE_F32: "f32", pb.DTYPE_F64: "f64"}
VOTES = ("vote", "ef-mean")
MIXED = ("packed", "rounded")


class Packed:
    """Of one node, whose run mixes by `codec`. Every header must pass, those without a vector as well: in an average
    of two only one message names the codec."""

    def __init__(self, codec: str) -> None:
        self._codec = codec
        self._chosen: dict[str, str] = {}  # peer -> codec of the last average with it

    def seen(self, peer: str, header: pb.Header) -> str:
        """The codec of that header's vector; of no meaning where it has none."""
        if header.kind in CHOSEN:
            self._chosen[peer] = header.codec[:16] or "f32"
        if header.vector.dtype in NUMBERS:
            return NUMBERS[header.vector.dtype]
        if header.kind in AVERAGES:
            return self._chosen.get(peer, OTHER)
        purpose = header.tag.purpose
        return self._codec if purpose in MIXED else "sign" if purpose in VOTES else OTHER

    def forget(self, peer: str) -> None:
        """Its connection is down."""
        self._chosen.pop(peer, None)
