"""A network in 3D that corrects what a segmenter finds of an organ, by the slices of it that were annotated.

Importing this package is cheap: torch and MONAI load with what uses them.
"""
