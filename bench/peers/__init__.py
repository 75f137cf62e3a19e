"""The service beside its peers: the same work for each of them, in one run, in alternating rounds.

``make bench-peers``, or ``python -m bench.peers``; README.md beside this file says what is compared and what
differs. Every peer is installed from its registry at a fixed version, into a folder of its own.

All that a system needs to keep and answer (for us the replica *and* its Redis) shares one core, the load
has the other. What a request costs is the CPU time of that whole process tree.
"""
