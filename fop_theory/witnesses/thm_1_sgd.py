"""Gradient descent converges and FOP doesn't: J = x^2 (Huber beyond 1), P(0) = I, p_inf = 1/4 < 1/L, rho = 1/8."""

from fractions import Fraction

plain, fop, M, last = Fraction(1), Fraction(1), Fraction(1), None
for t in range(100):
    g = 2 * max(Fraction(-1), min(Fraction(1), fop))
    if last is not None:
        M += Fraction(1, 8) * 2 * g * last * M
    # J(x) + J(y), start (1, 0): the second coordinate stays at its minimum, so M = diag(M, 1) and |P| = 1.
    assert M**2 <= 1
    gamma = Fraction(1, (t + 1) ** 2) + (1 - Fraction(1, (t + 1) ** 2)) * Fraction(1, 4)
    plain -= gamma * 2 * plain
    fop, last = fop - gamma * M**2 * g, g
print(f"after 100 steps of the same lengths: gradient descent at {float(plain):.1e}, FOP at {fop}, its P is diag(0, 1)")
assert abs(plain) < Fraction(1, 10**28)
assert (fop, M) == (-1, 0)
