"""P_k = I/(k + 2)^2 is positive definite with rho_k > 0, and f = x^2/2 is not minimised: x_k -> x_0 / 2."""

from fractions import Fraction

unit = claimed = Fraction(1)  # Steps of size 1/L, and of size rho_k.
spent = Fraction(0)
for k in range(1000):
    P = Fraction(1, (k + 2) ** 2)
    rho = 2 * P - P**2
    assert rho > 0
    unit *= 1 - P
    assert unit == Fraction(k + 3, 2 * (k + 2))
    spent += rho * P
tail = Fraction(2, 3 * 1001**3)  # rho_k P_k < 2/(k + 2)^4; the rest sums to less than this.
assert 1 - spent - tail > Fraction(4, 5)  # prod (1 - a_k) >= 1 - sum a_k
print(f"after 1000 steps of 1/L: {float(unit)}; with steps rho_k never below {float(1 - spent - tail)}")
