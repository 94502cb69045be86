"""Contrastive pre-training on unlabelled CT: slices read once into a store, examples drawn from it by rule."""
