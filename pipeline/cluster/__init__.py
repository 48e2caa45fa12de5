"""Work that other processes do, here or on other machines, as tasks of Ray."""
