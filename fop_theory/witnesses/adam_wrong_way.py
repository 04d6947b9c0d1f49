"""Adam under FOP, J = theta: Eq. (4) doubles M at its second step, and that makes Adam's next step shorter."""

from fractions import Fraction

b1, b2 = Fraction(9, 10), Fraction(999, 1000)


def u_squared(p1, p2):
    """Square of Adam's second direction after the inputs p1, p2 > 0, its epsilon 0."""
    m = (b1 * (1 - b1) * p1 + (1 - b1) * p2) / (1 - b1**2)
    v = (b2 * (1 - b2) * p1**2 + (1 - b2) * p2**2) / (1 - b2**2)
    return m**2 / v


M, rho_lr, g = Fraction(1), Fraction(1, 2), Fraction(1)  # every gradient of J is 1
M_next = M + rho_lr * 2 * g * g * M  # Eq. (4) says: a larger M lowers J
kept, learned = (u_squared(M**2 * g, x**2 * g) for x in (M, M_next))
assert learned < kept == 1  # J falls by lr * u: less than with the old M
print(f"M {M} -> {M_next}: squared step of Adam {kept} -> {float(learned):.4f}")
