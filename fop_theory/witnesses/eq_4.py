"""Eq. (4) takes M one step too late: one parameter, J = theta, all rates one, so that every gradient is 1."""

from fractions import Fraction

g = h = lr = rho = Fraction(1)
M_last = Fraction(1)  # the factor that made step t-1
M_now = M_last + rho * lr * (g * h + h * g) * M_last  # Algorithm 1, line 7
up, down = (0 - lr * M**2 * h for M in (M_last + 1, M_last - 1))  # J after the step from theta = 0
true = (up - down) / 2  # exact: J is a parabola in M
printed = -lr * (g * h + h * g) * M_now
assert (true, printed) == (-2, -6)
print(f"derivative of the loss by M^(t-1): {true}; Eq. (4) with M^(t) = {M_now}: {printed}")
