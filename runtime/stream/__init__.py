"""The stream engine: transform, overlap-add, pipeline, and the separator around them."""
