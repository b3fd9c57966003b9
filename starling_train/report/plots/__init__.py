"""A report's plots: what is drawn, as data, and how."""
