"""Benchmarks: trioproxy beside nginx and HAProxy on this machine. docs/performance.md tells how to read them."""
