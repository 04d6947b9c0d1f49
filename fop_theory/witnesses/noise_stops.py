"""Theorem 1B does not survive noise: slope 1, noise +-10 by a coin, and P = 0 once two gradients disagree."""

from fractions import Fraction
from itertools import product

lr, gap, K = Fraction(1, 10**6), Fraction(79, 2), Fraction(493, 100)  # J(40) = 79/2; K < 4.93 for convex losses
rho = 1 / (198 * lr)
assert lr * (1 + K * rho * gap) <= 1  # with L = P(0) = 1 the learning rate is one that Theorem 1B admits
stopped = 0
for coins in product((10, -10), repeat=8):
    x, M, last = Fraction(40), Fraction(1), None
    for noise in coins:
        g = min(x, Fraction(1)) + noise  # x stays above -1
        M += 0 if last is None else rho * lr * 2 * g * last * M
        x, last = x - lr * M**2 * g, g
    stopped += M == 0 and x > 39
print(f"{stopped} of {2**8} runs stand still for ever where the slope is 1")
assert stopped == 2**8 - 2
