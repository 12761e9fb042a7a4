"""Certificates' lives: bundles, when to renew, where they are kept, and the manager who sees to it."""
