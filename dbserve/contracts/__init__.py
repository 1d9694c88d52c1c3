"""Frozen models that the control plane and the workers both speak."""
