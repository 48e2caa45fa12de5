"""How MLflow is reached: its address, its faults, and the patience with servers that go away."""
