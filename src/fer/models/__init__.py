"""Networks: typed keyword arguments in, a module out; no config in sight."""
