"""What may be configured: the kinds of keys, the sections, and one file for each command; the standard library only."""
