"""V and M: what looks and what remembers."""
