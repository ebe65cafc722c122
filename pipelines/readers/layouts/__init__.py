"""Where the splits of a data folder are, in the layouts that annotation tools write."""
