"""Outline organs on CT from few labels: PolyCL, SAM and SAM 2 behind MONAI Label."""

__version__ = "0.1.0"
