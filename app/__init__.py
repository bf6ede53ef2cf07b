"""The server: protocol, storage, streaming and the HTTP surface."""
