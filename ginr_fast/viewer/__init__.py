"""The viewer of ``ginr-fast view``: logic without a browser, and a thin layer of viser over it."""
