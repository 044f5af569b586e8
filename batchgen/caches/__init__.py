"""Step caches: which evaluations of a row are computed, and what stands in for the others."""
