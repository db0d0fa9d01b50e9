"""Colours of everything that is drawn, for any kind of colour vision.

Those of Okabe and Ito (jfly.uni-koeln.de/color). A test simulates protanopia, deuteranopia and
tritanopia; where colours mean something, shape, width or words say it too.
"""

BLACK = '#000000'
BLUE = '#0072B2'
VERMILION = '#D55E00'
PURPLE = '#CC79A7'
GREEN = '#009E73'
SKY = '#56B4E9'
ORANGE = '#E69F00'
GREY = '#8A8F98'

# Of the two policies that are compared, what was recorded, and how far the two are apart.
POLICIES = (BLUE, VERMILION)
RECORDED = GREY
APART = BLACK
