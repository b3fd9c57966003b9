"""Formulas: losses, advantages, spectra, sampling; tensors and numbers only."""
