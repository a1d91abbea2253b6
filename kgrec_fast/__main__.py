"""``python -m kgrec_fast``: the command ``kgrec-fast``."""

from __future__ import annotations

from kgrec_fast.cli import main

if __name__ == "__main__":
    main()
