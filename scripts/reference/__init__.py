"""Reference pages of the documentation, made from the code: `python -m scripts.reference`.

Everything a page names is read from where it is defined, so a page cannot say something else than
the program does.
"""
