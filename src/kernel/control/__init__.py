"""A kernel for other processes of the same user: its control socket, and the client that has Kernel's methods.

Read `wire` (what is sent), `pack` (how values travel), `surface` (which methods there are), `place` (where the
socket is), then `server` and `client`. The server uses the kernel's public methods alone.
"""
