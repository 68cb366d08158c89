"""The operators. One folder each; ``dispatch.py`` chooses a backend."""
