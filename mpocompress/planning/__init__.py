"""The choice of site shape and bonds for every matrix.

Error curves of all matrices and one target give a plan: which matrix is decomposed, in which site shape, at which
bonds. No core is computed here.
"""
