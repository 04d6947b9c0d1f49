"""Counterexamples in exact arithmetic, each a script that runs alone."""
