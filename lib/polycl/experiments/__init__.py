"""Experiments that compare methods on the fixed splits, and write what they found as tables, JSON and plots."""
