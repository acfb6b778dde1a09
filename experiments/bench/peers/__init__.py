"""The same computations by others: C++ with OpenMP, PyTorch, scipy.

All are optional. What cannot be had here is a peer that says why, never an error; what is had is
compared with ours before anybody is timed.
"""
