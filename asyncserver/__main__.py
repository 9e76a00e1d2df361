"""``python -m asyncserver`` is the command ``asyncserver``."""

from __future__ import annotations

from asyncserver.cli import main

if __name__ == "__main__":
    main()
