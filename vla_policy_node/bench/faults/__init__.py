"""The fault campaign: ten thousand ways to break the inputs, and a judge of what was sent.

`oracle` knows only what is promised, never how it is kept: it imports nothing from `control`.
"""
