"""The whole system: which nodes run, with which parameters, and their processes."""
