"""Drawing on pictures, with names in any script."""
