"""Scores of a model: categorical and generative."""
