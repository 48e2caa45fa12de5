"""Two arms held against each other: pairs, their costs, decisions and comparisons."""
