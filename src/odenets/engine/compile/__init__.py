"""Loops compiled around a graph of f."""
