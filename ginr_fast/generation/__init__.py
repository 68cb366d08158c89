"""Generating instances: consistency training, latent diffusion, and how samples are judged."""
