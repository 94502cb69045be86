"""From a few annotated slices to the volume, by SAM 2: engine, algorithm, and the training of the small CT model.

Importing this package is cheap: torch and sam2 load with what uses them.
"""
