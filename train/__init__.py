"""Train separation networks and define their families; needs torch."""
