"""Sparse-to-sparse training: ``SET``, ``RigL``, ``SRigL``, ``SparseMomentum``, ``TopKAST``, ``SRSTE``, AC/DC."""
