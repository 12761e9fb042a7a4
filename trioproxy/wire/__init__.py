"""Formats on the wire, sans-IO and from the standard library alone: bytes in, values out."""
