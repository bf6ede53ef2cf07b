"""The protocol core: events, their payloads, the fold, the digest and the wire framing.

Pure: values in, values out. Nothing in this package does I/O or knows of Flask, Redis, RQ, peewee or gevent.
docs/protocol.md is the contract these modules implement.
"""
