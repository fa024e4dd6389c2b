"""Audio in and out: decoders, encoders, channels, tags."""
