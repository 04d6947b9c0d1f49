"""Figure 2 counts: one k^2 x k^2 matrix a convolution has the sum of k^4 entries; 65 and 197 are sums of k^2."""

cnn = [3] * 7 + [1] * 2  # kernel widths of All-CNN-C
for name, widths, printed in (("9 layers", cnn, 65), ("ResNet-18", [7] + [3] * 16 + [1] * 4, 197)):
    rows, entries = sum(k**2 for k in widths), sum(k**4 for k in widths)
    assert rows == printed < entries
    print(f"{name}: {entries} entries, {rows} rows, printed {printed}")

total = 7**2 * 3 * 64 + 2 * 64  # ResNet-18: the first convolution and its batch normalisation,
i = 64
for o in (64, 128, 256, 512):  # four stages: four 3 x 3 layers and a projection, each normalised,
    total += 9 * (i * o + 3 * o * o) + i * o + 5 * 2 * o
    i = o
total += 512 * 1000 + 1000  # and the dense layer
assert total == 11_693_736 < 275_000_000
print(f"ResNet-18: {total} parameters, printed about 275M")
