"""Triton kernels of the masked forward: imported on a GPU alone; every one has a plain PyTorch twin elsewhere."""
