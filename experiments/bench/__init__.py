"""The benchmark behind ``mast3r-slam bench``: every stage alone, its peers, and the whole system.

- ``timing``: seconds to compile; contestants that take turns; medians and quartiles
- ``ceilings``: what the machine can do at best
- ``work``: operations and bytes of every stage, by formula
- ``inputs``: two views of a room and a graph of keyframes, as the system meets them
- ``network``, ``matching``, ``geometry``, ``linear``: the stages
- ``system``: frames per second of a walk
- ``peers``: the same in C++, PyTorch and scipy
- ``suite``, ``results``, ``report``, ``plot``, ``gate``: run all, write, show, compare
"""
