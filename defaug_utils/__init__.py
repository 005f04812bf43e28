"""Helpers of the book on diffusion-based data augmentation for surface-defect detection."""

__version__ = "0.1.0"
