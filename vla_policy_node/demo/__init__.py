"""The demo: the whole system at work in the simulated world, with figures and pictures of it."""
