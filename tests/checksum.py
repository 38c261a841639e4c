"""The checksum of a vector's chunks by its definition, in plain numbers."""


def checksum(payload: bytes, chunk_bytes: int = 1 << 20) -> int:
    """Modulo 2^64: the sum of the 64-bit words of chunk k, from 0, times 2k + 1."""
    total = 0
    for k, start in enumerate(range(0, len(payload), chunk_bytes)):
        chunk = payload[start : start + chunk_bytes]
        words = [int.from_bytes(chunk[at : at + 8], "little") for at in range(0, len(chunk), 8)]
        total += (2 * k + 1) * sum(words)
    return total % 2**64
