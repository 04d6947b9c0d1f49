"""Does a repaired FOP do harm? A fixed suite, six decades of each rate.

`train` says what is run and runs it, `summary` judges, `figures` draws.
"""
