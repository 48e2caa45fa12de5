"""What decisions and comparisons leave behind for people to read."""
