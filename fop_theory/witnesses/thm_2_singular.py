"""A singular P, which Theorem 2 allows, makes its step negative: f = (x^2 + y^2)/2 grows fourfold a step."""

from fractions import Fraction

L = Fraction(1)
P = (Fraction(1), Fraction(0))
rho = (2 * min(P) - max(P) ** 2) / L
theta: tuple[Fraction, ...] = (Fraction(1), Fraction(0))
print(f"rho = {rho}")
for k in range(1, 6):
    theta = tuple(x - rho * p * x for x, p in zip(theta, P, strict=True))
    f = sum(x**2 for x in theta) / 2
    print(f"f(theta_{k}) = {f}")
    assert f == Fraction(4**k, 2)
still = Fraction(1) - (1 / L) * P[1] * Fraction(1)
assert rho < 0
assert still == 1  # From (0, 1) no step size moves at all: P g = 0.
