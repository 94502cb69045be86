"""Names and numbers of the phantom's labels."""

LABELS = {
    "liver": 1,
    "spleen": 2,
    "left kidney": 3,
    "right kidney": 4,
    "aorta": 5,
    "stomach": 6,
    "vertebrae": 7,
    "lungs": 8,
    "lesion": 9,
    "gallbladder": 10,
    "inferior vena cava": 11,
    "pancreas": 12,
    "colon": 13,
}
"""Name to id; 0 is everything else. A lesion lies inside the liver and overrides it: see `merge_lesion`."""
