"""The standard library's ``socketserver``, on the engine of ``asyncserver``."""
