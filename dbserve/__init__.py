"""dbserve: the control plane of a service that trains residual networks as independent denoising blocks."""

__version__ = "0.1.0"
