"""ImageNet: Figure 2, bottom, and Figure 5 (a).

`train` says what is run and runs it, `summary` judges, `figures` draws.
"""
