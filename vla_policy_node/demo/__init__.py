"""The whole system at work: episodes in the simulated world, figures and pictures of them."""
