"""How well compiled models predict text, and how far they are from the original: `hwpq eval`."""
