"""The public API: the ``.proto`` file and what is generated from it."""
