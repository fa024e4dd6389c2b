"""Building blocks that the network families share."""
