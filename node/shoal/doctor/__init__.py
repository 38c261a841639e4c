"""What `shoal doctor` looks at, on this machine and with the peers that are named; one function a question."""
