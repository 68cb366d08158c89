"""``nn.Module`` decoders to drop into a model."""
