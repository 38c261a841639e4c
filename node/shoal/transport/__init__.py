"""gRPC between nodes, in both directions. Nothing above this package imports grpc, and nothing here knows training.

`Transport` is what the daemon holds, `TransportEvents` what it hears back. Below: `dialler` calls, `server` is called,
`peers` is their common table, `connection` moves frames over a pair of streams, `frames` is their encoding, `channels`
gRPC's options.
"""

from shoal.transport.connection import Traffic, TransportEvents
from shoal.transport.transport import Transport

__all__ = ["Traffic", "Transport", "TransportEvents"]
