"""Copies what a run rendered to where others read it: the forms that datasets come in."""
