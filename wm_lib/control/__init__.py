"""C, a small controller, and the ways it learns."""
