"""Thin adapters between MONAI Label's interfaces and the rest of the package."""
