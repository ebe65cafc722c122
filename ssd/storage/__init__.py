"""Files: written whole, and read without running anything of them."""
