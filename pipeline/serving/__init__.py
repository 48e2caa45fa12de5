"""The model that MLflow serves, and the same model from Python."""
