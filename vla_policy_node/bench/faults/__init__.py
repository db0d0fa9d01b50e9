"""The fault campaign: ten thousand faults, and a judge of what was sent in spite of them.

`oracle` knows only what is promised, never how it is kept: it imports nothing from `control`.
"""
