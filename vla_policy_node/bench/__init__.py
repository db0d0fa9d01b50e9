"""Benchmarks: measurements that take too long for tests, each behind `vla bench NAME`."""
