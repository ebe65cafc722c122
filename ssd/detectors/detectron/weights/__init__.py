"""Detectron's files of weights, read and written."""
