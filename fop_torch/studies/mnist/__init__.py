"""Figures A.1 and A.2: the rank of FOP's preconditioner, on MNIST.

`train` says what is run and runs it, `summary` judges, `figures` draws.
"""
