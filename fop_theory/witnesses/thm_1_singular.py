"""A semidefinite P can prevent convergence: J = huber(x) + huber(y), P(0) = diag(1, 0), start (0, 1): nothing moves."""

from fractions import Fraction

theta, M = [Fraction(0), Fraction(1)], [Fraction(1), Fraction(0)]  # M diagonal, so P(0) = diag(1, 0)
start, last = list(theta), None
for t in range(100):
    g = [max(Fraction(-1), min(Fraction(1), x)) for x in theta]
    if last is not None:  # S = 2 g g^T = diag(0, 2): S M = 0, whatever rho is; here rho = 1.
        M = [m + 2 * a * b * m for m, a, b in zip(M, g, last, strict=True)]
    delta = Fraction(1, (t + 1) ** 2)
    gamma = delta * max(m**2 for m in M) + (1 - delta) * Fraction(1, 2)
    theta = [x - gamma * m**2 * a / max(n**2 for n in M) for x, m, a in zip(theta, M, g, strict=True)]
    last = g
print(f"after 100 steps: theta = ({theta[0]}, {theta[1]}), gradient ({g[0]}, {g[1]}), minimum at (0, 0)")
assert theta == start
assert g != [0, 0]
