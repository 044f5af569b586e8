"""Measurements of batchgen itself, without a model or a cluster."""
