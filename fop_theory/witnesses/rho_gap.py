"""A learning rate that suits P(0) alone does not suit FOP: J = x^2/2, P(0) = 1, lr = 1/2, rho J(x_0) = 9/2."""

from fractions import Fraction

lr, rho = Fraction(1, 2), Fraction(1)
x, M, last, frozen = Fraction(3), Fraction(1), None, Fraction(3)  # rho J(x_0) = 9/2
for t in range(5):
    if last is not None:
        M += rho * lr * 2 * x * last * M
    before, x, last, frozen = x, x - lr * M**2 * x, x, frozen - lr * frozen
    # From t = 1 on, the state repeats: lr P >= 3 and rho lr x^2 >= 1/2, so |x| doubles at least.
    assert t == 0 or (lr * M**2 >= 3 and 2 * rho * lr * before**2 >= 1 and abs(x) >= 2 * abs(before))
print(f"after 5 steps |x| > 10^{len(str(int(abs(x)))) - 1}; with P(0) left alone x = {frozen}")
assert frozen == Fraction(3, 2**5)
