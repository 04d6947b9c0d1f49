"""L-Lipschitz as printed: f' = clip(4x, -1, 1) is convex and 1-Lipschitz, and the proof's first line fails for it."""

from fractions import Fraction


def f(x):
    """Convex, slope at most 1, curvature 4 near 0."""
    return 2 * x * x if abs(x) <= Fraction(1, 4) else abs(x) - Fraction(1, 8)


L, move = 1, Fraction(1, 4)
change, allowed = f(move) - f(Fraction(0)), L * move**2 / 2  # From x = 0, where f' = 0.
print(f"f(1/4) - f(0) = {change}, the inequality allows {allowed}")
assert change > allowed
for mu in (Fraction(1), Fraction(1, 10**6), Fraction(1, 10**30)):
    far = 1 / mu + 1
    print(f"mu = {mu}: Eq. (12) asks for 1/2 >= {mu * f(far)} at x = {far}")
    assert Fraction(1, 2) < mu * f(far)
