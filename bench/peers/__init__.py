"""Servers that do the same work as Runtail, each in a folder with its versions and every line of its configuration.

Responsible for their names. What a server has to tell is `bench.peers.peer.Peer`; what is measured of all of them, by
the same code, is `bench.peers.measures`.
"""
