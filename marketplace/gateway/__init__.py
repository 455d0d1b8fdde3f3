"""The only package that imports ``stripe``: requests out, typed answers back, verified events in."""
