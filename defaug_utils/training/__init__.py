"""Training any network: one loop, checkpoints, memory, and the backbones."""
