"""A report's plots: their content as data, and how they are drawn."""
