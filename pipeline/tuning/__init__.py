"""Optuna: studies over a stage's settings. The only importer of Optuna."""
