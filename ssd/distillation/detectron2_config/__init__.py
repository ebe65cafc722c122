"""Configurations of Distill_GID_detectron2: detectron2's keys, and those of distillation beside them."""
