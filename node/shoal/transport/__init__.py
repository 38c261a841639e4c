"""gRPC between nodes, in both directions. Nothing above this package imports grpc, and nothing here knows training.

`Transport` is what the daemon holds, `TransportEvents` what it hears back. Below: `dialler` calls, `server` is called,
`peers` is their common table, `connection` moves frames over a pair of streams, `frames` is their encoding, `channels`
gRPC's options, `tls` who is at the other end.
"""

import os

# gRPC looks at this once, when it is imported. It is what TLS 1.2 may use, and needs an RSA key, which our authority
# signs none of; so no TLS below 1.3 comes about. (`tls.py` refuses such calls besides.)
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"

from shoal.transport.connection import Traffic, TransportEvents
from shoal.transport.transport import Transport

__all__ = ["Traffic", "Transport", "TransportEvents"]
