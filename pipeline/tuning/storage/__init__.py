"""Optuna's storage: opened, asked, and what stands in it of the life of a trial."""
