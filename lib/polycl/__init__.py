"""Outline organs on CT from few labels: PolyCL, SAM and SAM 2 behind MONAI Label."""

import os

# Read when torch loads. By default its threads spin while they wait for each other; where another program wants a core
# too, a network then takes many times longer, since the thread that is waited for does not run.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
