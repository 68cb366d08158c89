"""Complete systems: encoder and decoder of a published model."""
