"""A teacher beside any student: what one detector learns from another while it trains."""
