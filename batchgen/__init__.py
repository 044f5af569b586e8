"""batchgen: batch offline rendering of diffusion models, from a Parquet manifest to a catalog."""

__version__ = "0.1.0"
