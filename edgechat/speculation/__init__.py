"""Guessing what a model will say, and when guesses pay. Integers and floats only."""
