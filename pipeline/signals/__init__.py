"""What finished numbers say: signals, their evidence, and the gate before stage 3."""
