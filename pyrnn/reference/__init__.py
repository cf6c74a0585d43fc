"""The reference: every op in plain NumPy, written to be read. It is the specification, slow and right."""
