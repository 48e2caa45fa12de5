"""Images in folders, one folder a class."""
