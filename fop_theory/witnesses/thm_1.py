"""Theorem 1 is false: Huber's loss (L = K = 1), p_inf = 1/2, delta = 1/(t + 1)^2, rho = 2: theta diverges, P > 0."""

from fractions import Fraction

theta, M, last = Fraction(2), Fraction(1), None
for t in range(30):
    g = max(Fraction(-1), min(Fraction(1), theta))
    if last is not None:
        M += 2 * (2 * g * last) * M
    delta = Fraction(1, (t + 1) ** 2)
    gamma = delta * M**2 + (1 - delta) * Fraction(1, 2)
    before, theta, last = theta, theta - gamma * g, g
    assert M**2 > 0
    # From t = 1 on the sign turns at each step, and P, gamma and |theta_t| + |theta_(t+1)| = gamma only grow.
    assert t == 0 or (before * theta < 0 and gamma >= abs(before) + 1 and abs(theta) >= 1)
print(f"after 30 steps: P = 10^{len(str(M**2)) - 1}, |theta| > 10^{len(str(int(abs(theta)))) - 1}")
assert abs(theta) > 10**24
