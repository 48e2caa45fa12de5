"""Which images of a source are taken: draws, units that stay together, or all of them."""
