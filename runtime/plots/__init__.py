"""Pictures of spectrograms, curves and attention."""
