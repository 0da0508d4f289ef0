"""How runs went: what a run left in its folder, as figures, tables and a page."""
