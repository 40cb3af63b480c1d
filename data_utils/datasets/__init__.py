"""Data sets of training samples."""
