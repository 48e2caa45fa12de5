"""Two arms compared: pairs, their costs, decisions and comparisons."""
