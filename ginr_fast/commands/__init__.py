"""The commands of ``ginr-fast``, one module each with a ``main(arguments)``."""
