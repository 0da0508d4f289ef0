"""Tool use inside model.generate()."""
