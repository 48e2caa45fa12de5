"""Schedules, settings and search spaces: from YAML and typed words to one typed object."""
