"""ImageNet: Figure 2, bottom."""
