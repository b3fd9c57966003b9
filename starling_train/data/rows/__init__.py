"""Data as people publish it: which files hold the rows, how each format is read, and what a row's columns mean."""
