"""A turn below 90 degrees can prevent convergence: f = |x|^2/2, each gradient turned by arccos 5/13 = 67 degrees."""

from fractions import Fraction

L, c, s = 1, Fraction(5, 13), Fraction(12, 13)
assert c > 0  # the angle is below 90 degrees,
assert c**2 + s**2 == 1  # and it is a turn
x, y = Fraction(1), Fraction(0)
for _ in range(20):
    before = x**2 + y**2
    x, y = x - (c * x - s * y) / L, y - (s * x + c * y) / L
    assert x**2 + y**2 == before * Fraction(16, 13)
print(f"after 20 steps of 1/L: |x|^2 = {float(x**2 + y**2):.1f}, from 1")
