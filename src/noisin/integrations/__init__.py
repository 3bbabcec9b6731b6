"""Noise at home in other packages; each module here needs the package that it is named after."""
