"""The control socket: JSON-RPC lines, its methods, server and client."""
