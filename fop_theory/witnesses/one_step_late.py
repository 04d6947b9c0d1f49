"""J = x^2/2: the hypergradient one step late diverges where the same rates, in time, converge."""

from fractions import Fraction

lr, rho, ends = Fraction(1, 10), 10, []
for late in (False, True):
    x, M, h = Fraction(1), Fraction(1), Fraction(0)
    for _ in range(7):
        g = x
        learned = M + rho * lr * 2 * g * h * M
        x -= lr * (M if late else learned) ** 2 * g
        M, h = learned, g
    ends.append(x * x / 2)
assert ends[0] < Fraction(1, 10**6)
assert ends[1] > 10**6
print(f"J after 7 steps, from 1/2: M before theta {float(ends[0]):.1e}, Algorithm 1 {float(ends[1]):.1e}")
