"""Where the splits of a data folder are, in the layouts that annotation tools write. A module a form of annotations: a
tool's layouts are in that of the form which it writes. `readers/splits.py` asks the modules in turn."""
