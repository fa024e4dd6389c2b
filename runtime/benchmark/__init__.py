"""How fast each backend is on this machine, beside what it costs in dB: ``tfx bench``."""
