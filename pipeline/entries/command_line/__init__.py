"""From typed words to a plan: the table of entry points, its rows, the parser, the plans."""
