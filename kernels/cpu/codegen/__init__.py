"""Generate vectorized code for numba, compile it once, and let its threads wait for each other."""
