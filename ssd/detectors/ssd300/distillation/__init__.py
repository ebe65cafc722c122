"""What SSD300 shows to a teacher or a student."""
