"""|P(t)| <= |P(0)| + t rho K^2 is false: on a slope of Huber's loss (K = 1) with rho = 1/2, P(t) = 4^t."""

from fractions import Fraction

rho, theta, M, g = Fraction(1, 2), Fraction(4**20), Fraction(1), Fraction(1)
for t in range(20):
    norm = M**2
    assert norm == 4**t
    delta = Fraction(1, (t + 1) ** 2)
    theta -= delta * norm + (1 - delta) * Fraction(1, 2)  # p_inf = 1/2 < 1/L
    assert theta >= 1  # so the next gradient is 1 again
    M += rho * (2 * g * g) * M
print(f"P(19) = {norm}, and the paper allows {1 + 19 * rho}")
assert norm > 1 + 19 * rho
