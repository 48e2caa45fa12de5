"""Addresses of servers and databases, and downloads."""
