"""Mixed traffic with random faults for a given time, and what must hold at the end.

    python -m tests.soak --seconds 1200 --seed 7

Not a test of the default run. Clients of every manner (traffic.py) keep the proxy busy while one
fault after the other is injected (faults.py). Client and endpoint both know what must arrive, so
each can tell at the end of a connection: whole, or cut, or wrong. A cut is right only where a fault
explains it (tally.py). When the time is over and the faults are gone, the proxy must be as it was:
all workers idle, no descriptor more, no zombie, and its memory as large as before (invariants.py).

Run by root it lives in a network of its own (world.py), in which the endpoint has a name, and DNS
and the range of ports are two more things that fail.
"""
