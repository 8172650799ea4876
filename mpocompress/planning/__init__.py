"""The choice of site shape and bonds for every matrix.

The error curves of all matrices and one target decide which matrix is decomposed, in which site shape, and with which
bonds. Apart from `decompose`, no core is computed here.
"""
