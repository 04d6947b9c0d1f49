"""gamma(t) in (1/(L + 1), 1/L) for large t is false even where gamma(t) -> p_inf: L = 1, p_inf = 1/4 < 1/L."""

from fractions import Fraction

L, limit, P = Fraction(1), Fraction(1, 4), Fraction(1)  # At a minimum no gradient moves P: |P(t)| = 1.
for t in range(3, 1000):
    delta = Fraction(1, (t + 1) ** 2)
    gamma = delta * P + (1 - delta) * limit
    assert limit < gamma < Fraction(1, 3)  # and it falls to p_inf = 1/4
print(f"gamma(999) = {float(gamma):.6f}, the paper's interval is ({1 / (L + 1)}, {1 / L})")
assert gamma < 1 / (L + 1)
