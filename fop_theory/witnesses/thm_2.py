"""Theorem 2 is false: f = x^2/2 (L = mu = 1), P = 1/2, one step of the theorem's size."""

from fractions import Fraction

L = mu = Fraction(1)
P = Fraction(1, 2)
x = Fraction(1)
rho = (2 * P - P**2) / L
after = x - rho * P * x

value, claimed = after**2 / 2, (1 - mu * rho) * x**2 / 2
print(f"rho = {rho}, f(x_1) = {value}, the theorem allows {claimed}")
assert (value, claimed) == (Fraction(25, 128), Fraction(16, 128))
assert value > claimed
