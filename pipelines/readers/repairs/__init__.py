"""What tools write in another way and what means one thing only: brought into the form that the strict reader takes."""
