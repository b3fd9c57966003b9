"""README.md of an exported model, as the hub and people read it."""
