"""Normalised FOP still scales: M M^T = diag(1, 7) becomes diag(1/5, 7/5), and neither axis is turned at all."""

from fractions import Fraction

P, n = (Fraction(1), Fraction(7)), 2
squared_norm = sum(p * p for p in P)
rate = Fraction(1, 5)  # sqrt(n) / |P|, a fraction here
assert rate**2 == n / squared_norm
gains = [rate * p for p in P]
print(f"sqrt(n) P / |P| = diag({gains[0]}, {gains[1]})")
assert gains == [Fraction(1, 5), Fraction(7, 5)]
L = Fraction(3, 2)  # J = 3/4 y^2: gradient descent with learning rate 1, then the same with P in front.
plain, normalised = 1 - L, 1 - gains[1] * L
print(f"y is multiplied by {plain}, and by {normalised} with FOP-norm")
assert abs(plain) < 1 < abs(normalised)
