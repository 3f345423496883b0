"""Tools of the teaching material."""
