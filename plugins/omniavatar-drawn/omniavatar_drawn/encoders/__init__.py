"""Training the networks around a small transformer: VAE, audio encoder, text encoder."""
