"""The configuration language of Detectron and Detectron.pytorch: what each key is, and what becomes of it here."""
