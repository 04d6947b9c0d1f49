"""CIFAR-10: Figure 2, top; Figure 5."""
