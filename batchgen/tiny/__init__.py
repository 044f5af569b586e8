"""The embedded text-to-video model: data, training, judge and shipped weights."""
