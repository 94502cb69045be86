"""Training of the small SAM 2 for CT: clips of slices in, a network that follows any object out."""
