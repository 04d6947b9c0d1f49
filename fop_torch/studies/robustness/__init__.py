"""Figure 3: how much the learning rate and the momentum matter with and without FOP, on CIFAR-10.

`train` says what is run and runs it, `summary` judges, `figures` draws.
"""
