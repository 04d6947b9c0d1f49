"""t delta(t) -> 0 does not give delta(t) |P(t)| -> 0: with P(t) = 4^t (see thm_1_norm) delta P and gamma grow."""

from fractions import Fraction

left, before = Fraction(4**60), Fraction(0)
for t in range(2, 60):
    delta = Fraction(1, (t + 1) ** 2)
    assert t * delta < Fraction(1, t)  # t delta(t) -> 0
    product = delta * 4**t
    gamma = product + (1 - delta) * Fraction(1, 2)  # p_inf = 1/2
    assert product > before
    before, left = product, left - gamma
print(f"t = 59: t delta(t) = {float(59 * delta):.3f}, delta(t) P(t) = {float(product):.1e}")
assert left > 1  # Still on the slope, where each gradient is 1 and P(t + 1) = 4 P(t).
