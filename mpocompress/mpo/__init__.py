"""The mathematics of matrix product operators (MPO).

A dense matrix is factorised into cores by TT-SVD, a weighted SVD or a fit; cores are truncated, contracted and
quantised. Everything here takes and returns matrices and cores; no file, checkpoint or model is known.
The memory pool of `memory` is the only state, guarded by a lock.
"""
