"""What to label next: scores of images by a segmenter, and strategies that choose an image and a slice by them."""
