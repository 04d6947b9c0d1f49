"""P = M M' never reverses a gradient; yet it can stop at g != 0, and a long step can raise the loss."""

M, g = [[1], [0]], [0, 7]  # P = diag(1, 0)
along = sum(M[i][0] * g[i] for i in range(2))  # M'g
Pg = [M[i][0] * along for i in range(2)]
assert Pg == [0, 0] != g
print(f"P g = {Pg} for g = {g}")

theta, lr = 1, 3  # J = theta^2 / 2, P = 1
after = theta - lr * theta
assert (after**2, theta**2) == (4, 1)
print(f"2 J rises from {theta**2} to {after**2}")
