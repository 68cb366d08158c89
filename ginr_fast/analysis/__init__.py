"""What trained mixtures of fields look like: instances, interpolations, bases, cost."""
