"""Who is who in a shoal with TLS: an authority that signs, members with certificates, tokens to get the first one.

`authority` is the folder with the signing key, on one machine; `credentials` is the folder that a node, a coordinator
or an observer has (`--tls DIR`); `member` is what a certificate says; `joining` brings a certificate to a key that
never leaves its machine. All keys are EC P-256: the TLS under gRPC knows no Ed25519.
"""
